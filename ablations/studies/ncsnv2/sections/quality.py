"""Tables beside the ablation's: all other metrics, what n does to the distance, and L x T."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ablations.reporting.pictures import Picture, dress, shared_legend, spans_decades
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import (
    for_figure,
    joined,
    number,
    yes_no,
)
from ablations.studies.ncsnv2.results import METRICS, Results
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    variant_colour,
    variant_marker,
    variant_order,
)

KEYS = ["dataset", "variant", "weights", "denoise"]


def quality_table(results: Results) -> Table:
    """Inception score, KID, precision to coverage of the final samples, and the distance at n.

    Over several seeds: the mean, and the sample standard deviation. The distance at n stands with
    its interval and beside its extrapolation to infinite n, both of the first seed.
    """
    records = []
    for key in groups_of(results.qualities, results):
        rows = where_of(results.qualities, key)
        record: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        record |= {"n": joined(rows["n"].dropna()), "n_seeds": rows["seed"].nunique()}
        record |= {"reference": _against(rows)}
        for metric in METRICS:
            record |= _metric_columns(rows[rows["metric"] == metric], metric)
        record["feature_space"] = joined(rows["feature_space"].dropna())
        record["note"] = _notes(rows)
        records.append(record)
    names = [*KEYS, "n", "n_seeds", "reference", "feature_space"]
    for metric in METRICS:
        names += [f"{metric}_{part}" for part in ("label", "mean", "std", "low", "high")]
    raw = pd.DataFrame(records, columns=[*names, "note"])
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column("IS ↑", [_cell(r, "IS") for r in records], number=True),
        Column("KID ↓", [_cell(r, "KID") for r in records], number=True),
        Column("Precision ↑", [_cell(r, "precision") for r in records], number=True),
        Column("Recall ↑", [_cell(r, "recall") for r in records], number=True),
        Column("F ↑", [_cell(r, "f_score") for r in records], number=True),
        Column("Density ↑", [_cell(r, "density") for r in records], number=True),
        Column("Coverage ↑", [_cell(r, "coverage") for r in records], number=True),
        Column("Distance at n ↓", [_interval_cell(r) for r in records], number=True),
        Column(
            "At infinite n",
            [_named(r, "infinite n", _cell(r, "infinite n")) for r in records],
            number=True,
        ),
        Column("Feature space", raw["feature_space"]),
        Column("n", raw["n"], number=True),
        Column("Reference", raw["reference"]),
        Column("Note", raw["note"]),
    )
    return Table(
        name="quality",
        title="Other metrics, and what n does to the distance",
        caption=(
            "Of the same final samples and features as the ablation's distance; in Inception's "
            "features alone do they compare with published ones. IS, the Inception score: mean "
            "over its splits; KID: mean over subsets; ± is the standard deviation over seeds, with "
            "one seed over splits or subsets. Precision and recall (Kynkäänniemi et al. 2019, 3 "
            "neighbours), density and coverage (Naeem et al. 2020, 5) compare equally many real "
            "images where there are so many; density may exceed 1. In brackets: a "
            "95 % interval for other images of the same model at this n, of the bootstrap or, "
            "where a note says so, by influence values (the delta method). At infinite n: "
            "the intercept of a line in 1/n (Chong & Forsyth 2020), at least 0, ± its standard "
            "error, which allows for other images of the same model. "
            f"{conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def trainings_of(results: Results) -> dict[tuple[str, str], str]:
    """The training that the rows of a data set and variant are sampled from."""
    cells = results.cells.dropna(subset=["training"])
    keys = zip(cells["dataset"], cells["variant"], strict=True)
    return dict(zip(keys, cells["training"], strict=True))


def whose(raw: pd.DataFrame) -> str:
    """Whether our rows of each data set are of one trained network."""
    ours = raw[raw["kind"] == "ours"]
    one = (ours.groupby("dataset")[["training", "weights"]].nunique() <= 1).all(axis=None)
    seeds = "The same trained network (of each seed)"
    return seeds if one else "Trained networks, each named in its row,"


def groups_of(frame: pd.DataFrame, results: Results) -> list[tuple[Any, ...]]:
    there = {(d, v, w, bool(n)) for d, v, w, n in frame[KEYS].itertuples(index=False, name=None)}
    order = variant_order(results, (variant for _, variant, _, _ in there))
    datasets = dataset_order(results)
    return sorted(there, key=lambda k: (datasets.index(k[0]), order.index(k[1]), k[2], k[3]))


def where_of(frame: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    chosen = np.ones(len(frame), dtype=bool)
    for column, value in zip(KEYS, key, strict=True):
        chosen &= (frame[column] == value).to_numpy(dtype=bool)
    return frame[chosen]


def _against(rows: pd.DataFrame) -> str:
    at = rows[rows["metric"] == "KID"]
    return f"{joined(at['n_reference'].dropna())} {joined(at['reference'].dropna())}"


def _metric_columns(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    rows = rows.sort_values("seed")
    values = rows["value"].dropna().astype(float)
    first = rows.iloc[0] if len(rows) else None
    return {
        f"{metric}_label": joined(rows["label"].dropna()),
        f"{metric}_mean": values.mean() if len(values) else np.nan,
        f"{metric}_std": values.std(ddof=1) if len(values) > 1 else _own(first, "std"),
        f"{metric}_low": _own(first, "low"),
        f"{metric}_high": _own(first, "high"),
    }


def _own(row: pd.Series | None, column: str) -> float:
    return np.nan if row is None or pd.isna(row[column]) else float(row[column])


def _notes(rows: pd.DataFrame) -> str:
    """What a number was taken over, and why one is not there."""
    named = rows.dropna(subset=["note"]).drop_duplicates(["metric", "note"])
    return "; ".join(f"{row['metric']}: {row['note']}" for row in named.to_dict("records"))


def _cell(record: dict[str, Any], metric: str) -> str:
    mean, std = record[f"{metric}_mean"], record[f"{metric}_std"]
    if pd.isna(mean):
        return "—"
    return f"{mean:.3g}" if pd.isna(std) else f"{mean:.3g} ± {std:.2g}"


def _named(record: dict[str, Any], metric: str, text: str) -> str:
    """A distance, with its feature space in the same cell."""
    return text if text == "—" else f"{record[f'{metric}_label']} {text}"


def _interval_cell(record: dict[str, Any]) -> str:
    mean = record["interval_mean"]
    if pd.isna(mean):
        return "—"
    low, high = record["interval_low"], record["interval_high"]
    return _named(record, "interval", f"{mean:.3g} [{low:.3g}, {high:.3g}]")


def distance_against_n(results: Results, *, denoise: bool) -> Picture:
    """Distance of subsets of the final samples over 1/n, with the line to infinite n."""
    points = results.extrapolations[results.extrapolations["denoise"] == denoise]
    datasets = [name for name in dataset_order(results) if name in set(points["dataset"])]
    figure, panels = new_panels(results, datasets, "distance at several n")
    for dataset, axes in zip(datasets, panels, strict=False):
        data = points[points["dataset"] == dataset]
        for variant in variant_order(results, data["variant"]):
            of_variant = data[data["variant"] == variant]
            for i, (_, curve) in enumerate(of_variant.groupby("seed")):
                _line_to_infinity(axes, curve, variant, label=variant if i == 0 else "")
        dress(axes, labels_of(data), logarithmic=spans_decades(data["distance"]), empty=data.empty)
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
        axes.set_xlabel("1 / n")
        ticks = np.unique(data["n"].to_numpy(int))[[0, -1]]
        axes.set_xticks([0, *(1 / ticks)], ["n = ∞", *(f"n = {number(n)}" for n in ticks)])
    shared_legend(figure, panels)
    how = "with" if denoise else "without"
    return Picture(
        name=f"distance_against_n_{'denoised' if denoise else 'not_denoised'}",
        title=f"Distance against n, {how} the denoising step",
        caption=(
            f"Fréchet distance of random subsets of the final samples, {how} the denoising step, "
            "over 1/n: its bias falls as 1/n, so the line's end at n = ∞ estimates the distance "
            "without it (Chong & Forsyth 2020); where the line ends below 0 the estimate is 0. The "
            f"bias of the reference's own n stays. One line per seed. {conditions(results)}"
        ),
        alt=f"Lines of Fréchet distance over 1/n, {how} denoising, extrapolated to infinite n",
        figure=figure,
    )


def _line_to_infinity(axes: Axes, curve: pd.DataFrame, variant: str, label: str) -> None:
    colour = variant_colour(variant)
    inverse = 1 / curve["n"].to_numpy(float)
    axes.plot(
        inverse,
        curve["distance"].to_numpy(float),
        linestyle="",
        marker=variant_marker(variant),
        markersize=4,
        color=colour,
        label=for_figure(label) or None,
    )
    ends = np.array([0, inverse.max()])
    line = curve.iloc[0]
    # Through the points' mean, as every least-squares line: the intercept may be bounded at 0.
    heights = curve["distance"].mean() + line["slope"] * (ends - inverse.mean())
    axes.plot(ends, heights, color=colour, linewidth=1.2)
    axes.errorbar(0, line["intercept"], 1.96 * line["standard_error"], color=colour, capsize=3)


def labels_of(data: pd.DataFrame) -> str:
    return joined(data["label"].dropna()) or "Fréchet distance"
