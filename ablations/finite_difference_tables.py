"""Tables of the grid ``finite-difference``: the toy, losses over time, and what a step costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ablations.finite_difference_results import (
    TrialResults,
)
from ablations.finite_difference_wording import (
    MODEL_NAMES,
    OBJECTIVE_NAMES,
    SOURCE,
    between,
    conditions_of,
    frame,
    plain_table,
    row_kind,
    said,
    settings_of,
    status_of,
)
from ablations.presentation import memory, number, text_or_empty
from ablations.tables import Table

#: Memory per GPU of NCSN training in gigabytes, on four GPUs (to reviewer 3).
SOURCE_MEMORY = {"ssm": 6.3, "fd_ssm": 5.4}


def toy_table(results: TrialResults) -> Table:
    """Every seed of the toy: how far the two fields lie from one another and from the truth."""
    records = []
    for entry in results.of("toy"):
        record: dict[str, Any] = {"seed": entry.seed, "status": status_of(entry)}
        if (found := entry.result) is not None:
            record |= {
                "relative_difference": found["relative_difference"],
                "relative_difference_weighted": found["relative_difference_weighted"],
                "fisher_ssm": found["fisher_divergence"]["SSM"],
                "fisher_fd_ssm": found["fisher_divergence"]["FD-SSM"],
                "seconds_ssm": found["seconds"]["SSM"],
                "seconds_fd_ssm": found["seconds"]["FD-SSM"],
                "truncation": found["error"]["truncation"],
                "rounding": found["error"]["rounding"],
            }
        records.append(row_kind(entry) | record)
    columns = {
        "seed": "Seed",
        "relative_difference": "Fields' relative difference",
        "relative_difference_weighted": "The same, weighted by the density",
        "fisher_ssm": "Fisher divergence, SSM",
        "fisher_fd_ssm": "Fisher divergence, FD-SSM",
        "seconds_ssm": "Time, SSM",
        "seconds_fd_ssm": "Time, FD-SSM",
        "truncation": "Truncation",
        "rounding": "Rounding",
        "status": "Status",
    }
    settings = settings_of(results, "toy")
    return plain_table(
        "toy",
        "Score fields of the 2-D toy",
        "0.8 N([5, 5], I) + 0.2 N([−5, −5], I), a three-layer MLP energy, "
        f"ε = {said(settings, 'epsilon')}, {said(settings, 'iterations')} iterations of "
        f"{said(settings, 'batch_size')}; both methods from the same weights on the same batches "
        "and directions. Relative difference of the fields: root mean square of FD-SSM − SSM over "
        "that of SSM, on [−8, 8]². Fisher divergence: mean of half the "
        "squared difference from the true score, weighted by the density. Time: of the steps "
        "alone, taken by turns. Truncation and rounding: relative errors of FD-SSM's gradient "
        "after training. The source has the mixture, ε = 0.1, three layers and the square, and "
        "says “almost the same as SSM” without a number: sizes, iterations and measures are ours. "
        f"{conditions_of(results, ['toy'])}",
        "2-D toy",
        records,
        columns,
        times=("seconds_ssm", "seconds_fd_ssm"),
    )


def loss_table(results: TrialResults) -> Table:
    """Every seed of each objective with its finite differences: the judged losses and the times."""
    records = []
    for objective in ("dsm", "ssm"):
        names = loss_names(objective)
        pair = " and ".join(names)
        for entry in results.of("loss", objective=objective):
            base = row_kind(entry) | {"group": pair, "seed": entry.seed, "status": status_of(entry)}
            if entry.result is None:
                records.append(base)
                continue
            same_time = at_equal_time(entry.result["curves"])
            for name in names:
                curve = entry.result["curves"][name]
                record = base | {
                    "method": name,
                    "exact_sm": curve["exact_sm"][-1],
                    "exact_sm_equal_time": same_time[name],
                    "seconds": curve["seconds"][-1],
                }
                if name.startswith("FD-"):
                    record |= {
                        "truncation": entry.result["error"]["truncation"],
                        "rounding": entry.result["error"]["rounding"],
                    }
                else:
                    record["status"] = "done"
                records.append(record)
    columns = {
        "method": "Objective",
        "seed": "Seed",
        "exact_sm": "Exact SM, last iteration ↓",
        "exact_sm_equal_time": "Exact SM at equal time ↓",
        "seconds": "Time",
        "truncation": "Truncation",
        "rounding": "Rounding",
        "status": "Status",
    }
    s = settings_of(results, "loss")
    return plain_table(
        "loss",
        "Loss by exact score matching",
        f"A convolutional energy ({said(s, 'width')} channels, {said(s, 'n_blocks')} residual "
        f"blocks) on 8×8 digits with noise σ = {said(s, 'sigma')}, {said(s, 'iterations')} "
        f"iterations of {said(s, 'batch_size')}, Adam at {said(s, 'learning_rate')} for all "
        f"(matched), ε = {said(s, 'epsilon')}. All are judged by exact score matching on the same "
        f"{said(s, 'n_held_out')} held-out images with the same noise; judging is in no time. At "
        "equal time: at the end of the faster of the two, between judgements by linear "
        f"interpolation. {conditions_of(results, ['loss'])}",
        "",
        records,
        columns,
        times=("seconds",),
    )


def loss_names(objective: str) -> tuple[str, str]:
    """Return the names of the two curves of a pair: the objective's and its finite difference's."""
    return OBJECTIVE_NAMES[objective], f"FD-{OBJECTIVE_NAMES[objective]}"


def at_equal_time(
    curves: dict[str, dict[str, list[float]]], quantity: str = "exact_sm"
) -> dict[str, float]:
    """Return each curve's quantity when the fastest was at its end.

    NaN for a curve that begins later.
    """
    end = min(curve["seconds"][-1] for curve in curves.values())
    return {
        name: float(np.interp(end, curve["seconds"], curve[quantity], left=np.nan))
        for name, curve in curves.items()
    }


def cost_table(results: TrialResults) -> Table:
    """Time and memory of a step of every objective, way of differentiating and model."""
    records: list[dict[str, Any]] = []
    for entry in results.of("cost"):
        settings, found = entry.trial.settings, entry.result
        group = {"group": MODEL_NAMES[settings["model"]]}
        if found is None:
            record = {"method": "—", "status": status_of(entry)}
            records.append(group | row_kind(entry) | record)
            continue
        shape = "×".join(map(str, found["shape"]))
        group["group"] += f", {shape}, {found['n_parameters']:,} parameters"
        reference = found["rows"][0]
        for row in found["rows"]:
            name = row["objective"]
            records.append(
                group
                | row
                | {
                    "kind": "reference" if name is None else "ours",
                    "method": "forward and backward" if name is None else OBJECTIVE_NAMES[name],
                    "way": "" if name is None else row["way"].replace("_", " "),
                    "memory_ratio": _over(row["peak_bytes"], reference["peak_bytes"]),
                    "status": "done",
                }
            )
        for row in found["left_out"]:
            method = {
                "method": OBJECTIVE_NAMES[row["objective"]],
                "way": row["way"].replace("_", " "),
                "mode": row["mode"],
                "status": f"left out: {row['why']}",
            }
            records.append(group | {"kind": "pending"} | method)
    for objective, gigabytes in SOURCE_MEMORY.items():
        records.append(
            {
                "kind": "paper",
                "group": "NCSN, training",
                "method": f"{SOURCE}, {OBJECTIVE_NAMES[objective]}",
                "peak_bytes": gigabytes * 1e9,
                "memory_ratio": None,
                "status": "quoted; per GPU, on four GPUs",
            }
        )
    raw = frame(
        records,
        *("kind", "group", "method", "way", "mode", "seconds", "ratio", "ratio_low", "ratio_high"),
        *("peak_bytes", "memory_ratio", "status"),
    )
    rows = raw.to_dict("records")
    display = pd.DataFrame(
        {
            "Model": raw["group"],
            "Objective": raw["method"],
            "Way": [text_or_empty(row["way"]) for row in rows],
            "Mode": [text_or_empty(row["mode"]) or "—" for row in rows],
            "Time": [_milliseconds(row["seconds"]) for row in rows],
            "× forward + backward": [number(row["ratio"]) for row in rows],
            "95 %": [between(row["ratio_low"], row["ratio_high"]) for row in rows],
            "Peak memory": [
                f"{row['peak_bytes'] / 1e9:.1f} G"
                if row["kind"] == "paper"
                else memory(row["peak_bytes"])
                for row in rows
            ],
            "× its memory": [number(row["memory_ratio"]) for row in rows],
            "Status": raw["status"],
        },
        dtype="str",
    )
    s = settings_of(results, "cost")
    return Table(
        name="cost",
        title="Time and memory of a step",
        caption="Forward and backward pass of each objective's loss; of NCSN, conditional as in "
        "the source's case, the update by Adam besides, in its reference too. All of a "
        f"model's rows were timed by turns in one run, {said(s, 'rounds')} rounds; the ratio is "
        "the median of the rounds' own, with the 95 % interval of the median. Peak memory: the "
        "most bytes that the allocator had given out at once beyond those before the step, scratch "
        "space within operations included. "
        f"{conditions_of(results, ['cost'])}",
        raw=raw,
        display=display,
        kinds=tuple(raw["kind"]),
        numeric=tuple(display.columns[4:-1]),
    )


def _over(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def _milliseconds(seconds: float) -> str:
    return "—" if seconds is None or pd.isna(seconds) else f"{number(1e3 * seconds)} ms"
