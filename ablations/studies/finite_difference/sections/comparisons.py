"""Paired comparisons of the grid ``finite-difference``, each with its interval."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

from ablations.reporting.table import Column, Table
from ablations.reporting.wording import memory, number
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.cost import cost_comparisons
from ablations.studies.finite_difference.sections.distance import (
    distance_comparisons,
)
from ablations.studies.finite_difference.sections.dkef import dkef_comparisons
from ablations.studies.finite_difference.sections.flow import flow_comparisons
from ablations.studies.finite_difference.sections.implicit import (
    implicit_comparisons,
)
from ablations.studies.finite_difference.sections.loss import loss_comparisons
from ablations.studies.finite_difference.sections.rows import PEAK, STEP, conditions_of, frame
from ablations.studies.finite_difference.sections.toy import toy_comparisons
from ablations.studies.finite_difference.sections.wording import (
    between,
)


def comparison_table(results: TrialResults, part: str) -> Table | None:
    """The paired comparisons of a part: every mean with its 95 % interval; None without any."""
    builders = {
        "toy": (toy_comparisons, ["toy"]),
        "loss": (loss_comparisons, ["loss"]),
        "distance": (distance_comparisons, ["distance"]),
        "flow": (flow_comparisons, ["flow"]),
        "implicit": (implicit_comparisons, ["implicit"]),
        "epsilon": (dkef_comparisons, ["dkef", "deep"]),
        "cost": (cost_comparisons, ["cost"]),
    }
    build, kinds = builders[part]
    records = build(results)
    if not records:
        return None
    for record in records:
        # A clock's outliers are no part of a step.
        middle = median if record["quantity"] == STEP else fmean
        for side in ("first", "second"):
            record[side], values = record[side]
            record[f"{side}_value"] = middle(values) if values else math.nan
    raw = frame(
        records,
        *("group", "quantity", "first", "first_value", "second", "second_value", "sort", "mean"),
        *("low", "high", "n"),
    )
    rows = raw.to_dict("records")
    columns = (
        Column("Comparison", raw["group"]),
        Column("Quantity", raw["quantity"]),
        Column("First", [_side(row, "first") for row in rows]),
        Column("Second", [_side(row, "second") for row in rows]),
        Column("Second against first", [_effect(row) for row in rows], number=True, by="mean"),
        Column("95 %", [between(row["low"], row["high"]) for row in rows], number=True, by="low"),
        Column("Pairs", [number(row["n"]) for row in rows], number=True),
    )
    interval = (
        "the median over rounds of measurement and its interval from order statistics"
        if part == "cost"
        else "the mean over seeds and its interval by Student's t for paired samples; of a ratio, "
        "by its logarithms. A dash: one pair has no interval"
    )
    if any(record["quantity"].endswith("at equal time") for record in records):
        interval += (
            ". At equal time: at the end of the faster of the two; a pair whose slower side was "
            "first judged later has no such value, and is not among the pairs"
        )
    return Table(
        name=f"comparisons_{part}",
        title="Paired comparisons",
        caption=f"Second against first: {interval}. {conditions_of(results, kinds)}",
        raw=raw,
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def _side(row: dict[str, Any], side: str) -> str:
    show = memory if row["quantity"] == PEAK else number
    return f"{row[side]}: {show(row[f'{side}_value'])}"


def _effect(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "—"
    return f"{number(row['mean'])}×" if row["sort"] == "ratio" else f"{row['mean']:+.3g}"
