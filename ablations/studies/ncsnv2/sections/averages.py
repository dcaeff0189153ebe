"""Technique 5 as a curve: distance, stability and colour shift over the width of the average."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ablations.reporting.artefacts import Artefact
from ablations.reporting.pictures import FAINT, Picture, dress_frame, shared_legend, spans_decades
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import distance_text, for_figure, joined, number, text_or_empty
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.colour_shift import colour_shifts
from ablations.studies.ncsnv2.sections.quality import labels_of
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    variant_order,
)

#: Averages of one training that make a curve.
_LEAST = 3
#: The share of a training that its stability does not look at.
BURN_IN = 1 / 3
_COLUMNS = [
    *("dataset", "variant", "training", "average", "width", "distance_mean", "distance_std"),
    *("n_seeds", "stability", "n_snapshots", "colour_shift", "label", "n"),
]


def average_table(results: Results) -> Table | None:
    """A row for each average of a training that has at least three; None without such a one.

    With the denoising step. The width is the standard deviation, in iterations over their number,
    of the iterations that the average is of (Karras et al. 2023, arXiv:2312.02696, Sec. 3.1).
    """
    records = _records(results)
    if not records:
        return None
    raw = pd.DataFrame(records, columns=_COLUMNS)
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Training", raw["training"]),
        Column("Average", raw["average"]),
        Column("Relative width", map(number, raw["width"]), number=True, by="width"),
        Column(
            "Distance ↓",
            [
                f"{row['label']} {distance_text(row['distance_mean'], row['distance_std'])}"
                for row in records
            ],
            by="distance_mean",
        ),
        Column("Spread of ln distance", map(number, raw["stability"]), number=True, by="stability"),
        Column("Colour shift", map(number, raw["colour_shift"]), number=True, by="colour_shift"),
        Column("n", raw["n"], number=True),
    )
    snapshots = joined(raw["n_snapshots"].dropna())
    return Table(
        name="averages",
        title="Averages of the weights",
        caption=(
            "One training sampled with several averages of its weights, with the denoising step. "
            "Relative width: the standard deviation of the iterations that an average is of, over "
            "their number; of raw weights 0. Spread: the standard deviation of ln distance over "
            f"the snapshots after the first third of the training ({snapshots or 'none'} of them), "
            "mean over seeds. Colour shift: the norm of the mean colour's distance from that of "
            f"training images, over the same snapshots. {conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def _records(results: Results) -> list[dict[str, Any]]:
    given = results.apart[results.apart["given"]]
    # Rows that differ in more than the average are no points of a curve over it.
    others = set(given[given["setting"] != "ema"]["variant"])
    cells = results.cells.dropna(subset=["average_width"])
    cells = cells[~cells["variant"].isin(others)]
    chosen = results.distances[results.distances["denoise"]]
    shifts = colour_shifts(results, denoise=True) if len(cells) else pd.DataFrame()
    records = []
    for dataset in dataset_order(results):
        of_data = cells[cells["dataset"] == dataset]
        for training, rows in of_data.groupby("training", sort=False):
            widths = rows.groupby("variant")["average_width"].first()
            if widths.nunique() < _LEAST:
                continue
            for variant in sorted(
                variant_order(results, widths.index), key=lambda v: (widths[v], v)
            ):
                here = chosen[(chosen["dataset"] == dataset) & (chosen["variant"] == variant)]
                final = here[here["purpose"] == "final"]
                values = final["distance"].astype(float)
                stability, n_snapshots = _stability(here[here["purpose"] == "selection"])
                records.append(
                    {"dataset": dataset, "variant": variant, "training": training}
                    | {"average": joined(rows[rows["variant"] == variant]["average"])}
                    | {"width": widths[variant], "label": labels_of(final)}
                    | {"distance_mean": values.mean() if len(values) else np.nan}
                    | {"distance_std": values.std(ddof=1) if len(values) > 1 else np.nan}
                    | {"n_seeds": final["seed"].nunique(), "n": joined(final["n"].dropna())}
                    | {"stability": stability, "n_snapshots": n_snapshots}
                    | {"colour_shift": _late_shift(shifts, dataset, variant)}
                )
    return records


def _late(frame: pd.DataFrame) -> pd.DataFrame:
    iteration = frame["iteration"].astype(float)
    return frame[iteration > BURN_IN * iteration.max()] if len(frame) else frame


def _stability(selection: pd.DataFrame) -> tuple[float, int | None]:
    """The spread of ln distance over late snapshots, mean over seeds, and how many these are."""
    late = _late(selection.dropna(subset=["distance"]))
    if late.empty:
        return np.nan, None
    logs = np.log(late["distance"].astype(float))
    spreads = logs.groupby(late["seed"]).std(ddof=1)
    return float(spreads.mean()), int(late.groupby("seed")["iteration"].nunique().max())


def _late_shift(shifts: pd.DataFrame, dataset: str, variant: str) -> float:
    here = shifts[(shifts["dataset"] == dataset) & (shifts["variant"] == variant)]
    late = _late(here.dropna(subset=["norm"]))
    return float(late["norm"].astype(float).mean()) if len(late) else np.nan


def average_curve(results: Results, table: Table) -> Picture:
    """Distance over the relative width of the average, from :func:`average_table`.

    Raw weights, of width 0, stand as a line.
    """
    raw = table.raw
    datasets = [name for name in dataset_order(results) if name in set(raw["dataset"])]
    figure, panels = new_panels(results, datasets, "averages")
    logarithmic = spans_decades(raw["distance_mean"])
    for dataset, axes in zip(datasets, panels, strict=False):
        data = raw[raw["dataset"] == dataset]
        for training, curve in data.groupby("training", sort=False):
            wide = curve[curve["width"] > 0]
            spread = wide["distance_std"].fillna(0).to_numpy(float)
            axes.errorbar(
                wide["width"].to_numpy(float),
                wide["distance_mean"].to_numpy(float),
                spread if spread.any() else None,
                marker="o",
                markersize=4,
                linewidth=1.6,
                capsize=2,
                label=for_figure(f"averaged, {training}"),
            )
            for x, y, name in wide[["width", "distance_mean", "average"]].itertuples(index=False):
                axes.annotate(
                    text_or_empty(name),
                    (x, y),
                    xytext=(3, 5),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=FAINT,
                )
            for value in curve[curve["width"] == 0]["distance_mean"].dropna():
                axes.axhline(value, color=FAINT, linestyle="--", label="raw weights")
        if logarithmic:
            axes.set_yscale("log")
        axes.set_xscale("log")
        dress_frame(axes, "relative width of the average", labels_of(data))
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
    shared_legend(figure, panels)
    return Picture(
        name="averages",
        title="Distance over the width of the average",
        caption=f"Fréchet distance with the denoising step. {table.caption}",
        alt="Curves of Fréchet distance over the relative width of the weights' average",
        figure=figure,
    )


def average_artefacts(results: Results) -> list[Artefact]:
    """Distance, stability and colour shift over the width of the average, as figure and table."""
    table = average_table(results)
    if table is None:
        raise ValueError(
            f"no training has been sampled with {_LEAST} averages yet; --grid ema has them"
        )
    return [Artefact(shown=average_curve(results, table)), Artefact(shown=table)]
