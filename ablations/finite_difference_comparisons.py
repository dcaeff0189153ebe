"""Paired comparisons of the grid ``finite-difference``, each with its interval."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

import pandas as pd

from ablations.finite_difference_model_comparisons import (
    distance_comparisons,
    flow_comparisons,
    implicit_comparisons,
)
from ablations.finite_difference_plan import DEEP_EPSILONS, DKEF_EPSILONS
from ablations.finite_difference_results import (
    Paired,
    TrialResults,
    comparison,
)
from ablations.finite_difference_tables import at_equal_time, loss_names
from ablations.finite_difference_wording import (
    MODEL_NAMES,
    OBJECTIVE_NAMES,
    TABLE_NAMES,
    between,
    conditions_of,
    frame,
    method_name,
)
from ablations.presentation import memory, number
from ablations.tables import Table
from scorekit.timing import median_interval

_STEP, _PEAK = "seconds of a step", "peak memory"


def comparison_table(results: TrialResults, part: str) -> Table | None:
    """The paired comparisons of a part: every mean with its 95 % interval; None without any."""
    builders = {
        "toy": (_toy_comparisons, ["toy"]),
        "loss": (_loss_comparisons, ["loss"]),
        "distance": (distance_comparisons, ["distance"]),
        "flow": (flow_comparisons, ["flow"]),
        "implicit": (implicit_comparisons, ["implicit"]),
        "epsilon": (_epsilon_comparisons, ["dkef", "deep"]),
        "cost": (_cost_comparisons, ["cost"]),
    }
    build, kinds = builders[part]
    records = build(results)
    if not records:
        return None
    for record in records:
        # A clock's outliers are no part of a step.
        middle = median if record["quantity"] == _STEP else fmean
        for side in ("first", "second"):
            record[side], values = record[side]
            record[f"{side}_value"] = middle(values) if values else math.nan
    raw = frame(
        records,
        *("group", "quantity", "first", "first_value", "second", "second_value", "sort", "mean"),
        *("low", "high", "n"),
    )
    rows = raw.to_dict("records")
    display = pd.DataFrame(
        {
            "Comparison": raw["group"],
            "Quantity": raw["quantity"],
            "First": [_side(row, "first") for row in rows],
            "Second": [_side(row, "second") for row in rows],
            "Second against first": [_effect(row) for row in rows],
            "95 %": [between(row["low"], row["high"]) for row in rows],
            "Pairs": [number(row["n"]) for row in rows],
        },
        dtype="str",
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
        display=display,
        kinds=("ours",) * len(raw),
        numeric=tuple(display.columns[4:]),
    )


def _toy_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    done = list(results.done("toy").values())
    if not done:
        return []
    records = []
    for key, quantity, sort in (
        ("fisher_divergence", "Fisher divergence from the truth", "difference"),
        ("seconds", "seconds of training", "ratio"),
    ):
        first, second = ([result[key][name] for result in done] for name in ("SSM", "FD-SSM"))
        records.append(
            comparison("FD-SSM against SSM", quantity, sort, ("SSM", first), ("FD-SSM", second))
        )
    return records


def _loss_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    records = []
    for objective in ("dsm", "ssm"):
        done = [result["curves"] for result in results.done("loss", objective=objective).values()]
        if not done:
            continue
        names = loss_names(objective)
        group = f"{names[1]} against {names[0]}"
        equal = [at_equal_time(curves) for curves in done]
        for quantity, sort, values in (
            (
                "exact SM at the last iteration",
                "difference",
                [[curves[name]["exact_sm"][-1] for curves in done] for name in names],
            ),
            (
                "exact SM at equal time",
                "difference",
                [[found[name] for found in equal] for name in names],
            ),
            (
                "seconds of training",
                "ratio",
                [[curves[name]["seconds"][-1] for curves in done] for name in names],
            ),
        ):
            sides = zip(names, values, strict=True)
            records.append(comparison(group, quantity, sort, *sides))
    return records


def _epsilon_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    records = []

    def against_ssm(group: str, kind: str, quantity: str, pick: Any, **settings: Any) -> None:
        exact = results.done(kind, epsilon=None, **settings)
        epsilons = DEEP_EPSILONS if kind == "deep" else DKEF_EPSILONS
        for epsilon in epsilons:
            mine = results.done(kind, epsilon=epsilon, **settings)
            seeds = sorted(exact.keys() & mine.keys())
            if seeds:
                first = "SSM", [pick(exact[seed]) for seed in seeds]
                second = method_name(epsilon), [pick(mine[seed]) for seed in seeds]
                records.append(comparison(group, quantity, "difference", first, second))

    for table, title in TABLE_NAMES.items():
        for name, how in (("broad", "N(0, 4 I)"), ("around", "around the data")):

            def pick(result: dict[str, Any], name: str = name) -> float:
                return result["likelihoods"][name]["nll"]

            against_ssm(f"DKEF on {title}", "dkef", f"NLL, {how}", pick, table=table)
    against_ssm("deep energy on digits", "deep", "exact SM", lambda result: result["exact_sm"])
    return records


def _cost_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    records = []
    for entry in results.of("cost"):
        if entry.result is None:
            continue
        times = entry.result["times"]
        names = {
            f"{row['objective']} {row['way']} {row['mode']}": row for row in entry.result["rows"]
        }
        group = MODEL_NAMES[entry.trial.settings["model"]]
        for finite, exact in (("fd_dsm", "dsm"), ("fd_ssm", "ssm"), ("fd_ssm_vr", "ssm_vr")):
            mine = f"{finite} finite_difference eager"
            for name, row in names.items():
                if row["objective"] != exact or row["mode"] != "eager" or mine not in names:
                    continue
                ratios = [a / b for a, b in zip(times[name], times[mine], strict=True)]
                low, high = median_interval(ratios)
                first = f"{OBJECTIVE_NAMES[finite]}", times[mine]
                second = f"{OBJECTIVE_NAMES[exact]}, {row['way'].replace('_', ' ')}", times[name]
                common = {"group": group, "first": first, "second": second}
                interval = Paired(mean=median(ratios), low=low, high=high, n=len(ratios))
                records.append(common | {"quantity": _STEP, "sort": "ratio"} | vars(interval))
                peaks = [
                    (label, [float(names[key]["peak_bytes"])])
                    for (label, _), key in ((first, mine), (second, name))
                ]
                ratio = peaks[1][1][0] / peaks[0][1][0]
                exactly = Paired(mean=ratio, low=math.nan, high=math.nan, n=1)
                records.append(
                    {"group": group, "first": peaks[0], "second": peaks[1]}
                    | {"quantity": _PEAK, "sort": "ratio"}
                    | vars(exactly)
                )
    return records


def _side(row: dict[str, Any], side: str) -> str:
    show = memory if row["quantity"] == _PEAK else number
    return f"{row[side]}: {show(row[f'{side}_value'])}"


def _effect(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "—"
    return f"{number(row['mean'])}×" if row["sort"] == "ratio" else f"{row['mean']:+.3g}"
