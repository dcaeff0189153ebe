"""Ways of sampling one training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ablations.reporting.pictures import FAINT, Picture, dress, shared_legend
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import (
    distance_text,
    for_figure,
    joined,
    number,
    step_rules,
    text_or_empty,
    yes_no,
)
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.quality import (
    KEYS,
    groups_of,
    labels_of,
    trainings_of,
    where_of,
    whose,
)
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    sampler_style,
    variant_colour,
)


def steps_curve(results: Results, table: Table) -> Picture | None:
    """Distance over score evaluations, from :func:`steps_table`.

    None where no sampler of the table stands at more than one number of evaluations.
    """
    raw = table.raw[table.raw["denoise"].astype(bool)]
    ways = ["source", "base", "sampler", "training"]
    spent = raw.groupby(["dataset", *ways], dropna=False)["score_evaluations"].nunique()
    if not (spent > 1).any():
        return None
    datasets = [name for name in dataset_order(results) if name in set(raw["dataset"])]
    figure, panels = new_panels(results, datasets, "distance against score evaluations")
    for dataset, axes in zip(datasets, panels, strict=False):
        data = raw[raw["dataset"] == dataset]
        several = data["training"].nunique() > 1
        for (source, base, sampler, training), curve in data.groupby(ways, dropna=False):
            of = f", {training}" if several and source != "published" else ""
            _steps_line(axes, curve, source, base, of, sampler)
        dress(axes, labels_of(data), logarithmic=True, empty=data.empty)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
        axes.set_xlabel("score evaluations per image")
    shared_legend(figure, panels)
    return Picture(
        name="steps",
        title="Distance against score evaluations",
        caption=(
            "Fréchet distance with the denoising step over the score evaluations of a sample, for "
            f"the L×T at each point. {table.caption}"
        ),
        alt="Fréchet distance over score evaluations per image, for several L×T",
        figure=figure,
    )


def _steps_line(
    axes: Axes, curve: pd.DataFrame, source: str, base: str, of: str, sampler: str
) -> None:
    curve = curve.sort_values("score_evaluations")
    x, y = (curve[c].to_numpy(float) for c in ("score_evaluations", "distance_mean"))
    quoted_here = source == "published"
    how, colour, marker = sampler_style(sampler)
    axes.plot(
        x,
        y,
        color="#7d838c" if quoted_here else colour or variant_colour(base),
        linestyle="--" if sampler == "consistent" or quoted_here else "-",
        marker=marker,
        markersize=4,
        label=f"{for_figure(base)}, {how}, {source}{for_figure(of)}",
    )
    below = sampler == "consistent" or quoted_here
    for ladder, at, height in zip(curve["ladder"], x, y, strict=True):
        axes.annotate(
            str(ladder),
            (at, height),
            xytext=(-4, -12) if below else (4, 5),
            textcoords="offset points",
            ha="right" if below else "left",
            fontsize=8,
            color=FAINT,
        )


def steps_table(results: Results) -> Table | None:
    """Distance against score evaluations: every row of a dataset where sampling differs.

    None where no variant of the grid was sampled in two ways. Published figures of the authors'
    checkpoints stand beside, marked, on the data set that they are of.
    """
    final = results.distances[results.distances["purpose"] == "final"]
    trainings, several = trainings_of(results), _several(results)
    rows_of = list(zip(final["dataset"], final["variant"], strict=True))
    final = final[[(row[0], trainings.get(row)) in several for row in rows_of]]
    if final.empty:
        return None
    spent = results.timings.dropna(subset=["score_evaluations_per_sample"])
    evaluations = dict(
        zip(
            zip(spent["dataset"], spent["variant"], strict=True),
            spent["score_evaluations_per_sample"],
            strict=True,
        )
    )
    sampled = results.hyperparameters.dropna(subset=["L", "T"])
    samplers = {
        (row["dataset"], row["variant"]): {
            "ladder": f"{row['L']}×{row['T']}",
            "epsilon": row["epsilon"],
            "step_rule": row["step_rule"],
        }
        for row in sampled.to_dict("records")
    }
    facts = results.cells.drop_duplicates(["dataset", "variant"]).set_index(["dataset", "variant"])
    records: list[dict[str, Any]] = []
    for key in groups_of(final, results):
        rows = where_of(final, key)
        values = rows["distance"].astype(float)
        record = dict(zip(KEYS, key, strict=True)) | {"kind": "ours", "source": "this run"}
        records.append(
            record
            | facts.loc[(key[0], key[1]), ["base", "sampler"]].to_dict()
            | samplers.get((key[0], key[1]), {"ladder": ""})
            | {
                "score_evaluations": evaluations.get((key[0], key[1])),
                "training": trainings[key[0], key[1]],
                "label": joined(rows["label"].dropna()),
                "distance_mean": values.mean(),
                "distance_std": values.std(ddof=1) if len(values) > 1 else np.nan,
                "n": joined(rows["n"].dropna()),
            }
        )
    for dataset in dataset_order(results):
        for row in quoted.step_rows(dataset):
            records.append({"kind": "paper", "dataset": dataset} | row)
    names = [*KEYS, "base", "sampler", "training", "ladder", "epsilon", "step_rule"]
    names += ["score_evaluations", "label", "distance_mean", "distance_std", "n", "source", "kind"]
    raw = pd.DataFrame(records, columns=names)
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Training", [text_or_empty(value) or "—" for value in raw["training"]]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column(
            "Sampler", [sampler_style(text_or_empty(name))[0] or "—" for name in raw["sampler"]]
        ),
        Column("L×T", raw["ladder"], number=True),
        Column("ε", map(number, raw["epsilon"]), number=True, by="epsilon"),
        Column("Rule of ε", [text_or_empty(value) or "—" for value in raw["step_rule"]]),
        Column("Score evaluations", map(number, raw["score_evaluations"]), number=True),
        Column(
            "Distance ↓",
            [
                f"{r['label']} {distance_text(r['distance_mean'], r['distance_std'])}"
                for r in raw.to_dict("records")
            ],
            by="distance_mean",
        ),
        Column("n", raw["n"], number=True),
        Column("Source", raw["source"]),
    )
    published = f"Rows that are not this run's are quoted: {quoted.STEPS_SOURCE}. "
    return Table(
        name="steps",
        title="Distance against score evaluations",
        caption=(
            f"{whose(raw)} sampled with L noise scales of T steps each (L×T); {_samplers(raw)}. "
            f"{step_rules(raw['step_rule'])}"
            f"{published if 'paper' in set(raw['kind']) else ''}{conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def _samplers(raw: pd.DataFrame) -> str:
    names = dict.fromkeys(raw["sampler"].dropna())
    return f"by {joined([sampler_style(name)[0] for name in names])}"


def _sampler(name: object) -> str:
    return sampler_style(str(name))[0] if text_or_empty(name) else "—"


def _several(results: Results) -> set[tuple[str, str]]:
    """Data set and training of what the grid samples in more than one way with the same weights."""
    cells = results.cells.drop_duplicates(["dataset", "variant"])
    ways = cells.groupby(["dataset", "training", "weights"])["variant"].nunique()
    return {(dataset, training) for dataset, training, _ in ways[ways > 1].index}
