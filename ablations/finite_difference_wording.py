"""How the tables and figures of the grid ``finite-difference`` say things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ablations.finite_difference_results import (
    TrialResult,
    TrialResults,
)
from ablations.presentation import duration, number
from ablations.tables import Table
from scorekit.tabular import TABLES

OBJECTIVE_NAMES = {
    "dsm": "DSM",
    "fd_dsm": "FD-DSM",
    "exact_sm": "exact SM",
    "ssm": "SSM",
    "ssm_vr": "SSM-VR",
    "fd_ssm": "FD-SSM",
    "fd_ssm_vr": "FD-SSM-VR",
    "mle": "maximum likelihood",
    "curvature": "curvature propagation",
    "approximate": "approximate back-propagation",
}
IMAGE_NAMES = {"digits": "digits, 8×8", "mnist": "MNIST, 28×28"}
TABLE_NAMES = {"parkinsons": "Parkinsons", "redwine": "RedWine", "whitewine": "WhiteWine"}
MODEL_NAMES = {
    "mlp": "MLP energy",
    "conv": "Convolutional energy",
    "score": "NCSNv2 score network",
    "ncsn": "NCSN, whole training step",
}
SOURCE = "authors' response"
assert TABLE_NAMES.keys() == TABLES.keys()


def conditions_of(results: TrialResults, kinds: Sequence[str]) -> str:
    """The sentences that end every caption: budget, hardware, software and the machine's load."""
    found = [
        entry.result["conditions"]
        for entry in results.trials
        if entry.trial.kind in kinds and entry.result is not None
    ]
    text = f"Budget “{results.plan.budget}”; not the source's numbers."
    if not found:
        return f"{text} Nothing is done yet."
    loads = [c["load_average"] for c in found if c["load_average"] is not None]
    load = f"; the machine's load average was {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    first = found[0]
    return f"{text} {first['device']}, torch {first['torch']}{load}."


def method_name(epsilon: float | None) -> str:
    """The objective and its epsilon; None is the limit, SSM."""
    return "SSM" if epsilon is None else f"FD-SSM, ε = {epsilon:g}"


def row_kind(entry: TrialResult) -> dict[str, str]:
    """The kind of a trial's table row."""
    kinds = {"done": "ours", "planned": "pending"}
    return {"kind": kinds.get(entry.state, "problem")}


def status_of(entry: TrialResult) -> str:
    """Done or why not, and what the diagnostic says of the finite difference."""
    if entry.result is None:
        return entry.state + (f": {entry.message}" if entry.message else "")
    error = entry.result.get("error")
    if error is not None and error["rounding_dominates"]:
        return "done; rounding dominates: a larger ε would do better"
    return "done"


def statuses_of(entries: Sequence[TrialResult]) -> str:
    """The status of several seeds: once where it is the same."""
    by_status: dict[str, list[str]] = {}
    for entry in entries:
        by_status.setdefault(status_of(entry), []).append(str(entry.seed))
    if len(by_status) == 1:
        return next(iter(by_status))
    return "; ".join(f"seed {', '.join(seeds)} {text}" for text, seeds in by_status.items())


def settings_of(results: TrialResults, kind: str) -> dict[str, Any]:
    """The settings of a kind's first trial, which all seeds share; empty without any."""
    return next((entry.trial.settings for entry in results.of(kind)), {})


def said(settings: dict[str, Any], key: str) -> str:
    """A setting for reading; a dash where it is not known."""
    return number(settings[key]) if key in settings else "—"


def frame(records: list[dict[str, Any]], *columns: str) -> pd.DataFrame:
    """Records as a frame with these columns in this order."""
    return pd.DataFrame(records, columns=list(columns))


def plain_table(
    name: str,
    title: str,
    caption: str,
    group: str,
    records: list[dict[str, Any]],
    columns: dict[str, str],
    times: tuple[str, ...] = (),
) -> Table:
    """A table whose columns are shown as they are, numbers by ``number``."""
    raw = frame([{"group": group} | r for r in records], "kind", "group", *columns)
    display = pd.DataFrame({"Data set": raw["group"]}, dtype="str")
    words = ("method", "status")
    for column, heading in columns.items():
        shown = duration if column in times else number
        display[heading] = [
            ("—" if pd.isna(value) else str(value)) if column in words else shown(value)
            for value in raw[column]
        ]
    return Table(
        name=name,
        title=title,
        caption=caption,
        raw=raw,
        display=display,
        kinds=tuple(raw["kind"]),
        numeric=tuple(heading for column, heading in columns.items() if column not in words),
    )


def with_spread(mean: float, spread: float) -> str:
    """A mean and its standard deviation to the same decimals; a dash where there is none."""
    if mean is None or pd.isna(mean):
        return "—"
    return f"{mean:,.2f}" + ("" if spread is None or pd.isna(spread) else f" ± {spread:.2f}")


def between(low: float, high: float) -> str:
    """An interval for reading; a dash where there is none."""
    if low is None or pd.isna(low):
        return "—"
    first, last = number(low), number(high)
    return first if first == last else f"{first} to {last}"
