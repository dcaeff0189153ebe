"""What rows of trials have in common: over seeds, their states, what was skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.reporting.paired import comparison, mean_and_spread
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import duration, number
from ablations.studies.finite_difference.results import TrialResult, TrialResults
from ablations.studies.finite_difference.sections.wording import (
    OBJECTIVE_NAMES,
    with_spread,
)

Records = list[dict[str, Any]]
Quantity = Callable[[dict[str, Any]], float]


def paired(
    objectives: tuple[str, str],
    sides: list[dict[int, dict[str, Any]]],
    picks: dict[str, Quantity],
    where: str = "",
) -> Records:
    """Compare what is picked over the seeds that both sides have; times by their ratio."""
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return []
    first, second = (OBJECTIVE_NAMES[name] for name in objectives)
    return [
        comparison(
            f"{second} against {first}{where}",
            quantity,
            "ratio" if quantity.startswith("seconds") else "difference",
            (first, [pick(sides[0][seed]) for seed in seeds]),
            (second, [pick(sides[1][seed]) for seed in seeds]),
        )
        for quantity, pick in picks.items()
    ]


STEP, PEAK = "seconds of a step", "peak memory"


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
    shown = [Column("Data set", raw["group"])]
    for column, heading in columns.items():
        if column in ("method", "status"):
            texts = ["—" if pd.isna(value) else str(value) for value in raw[column]]
            shown.append(Column(heading, texts))
        else:
            say = duration if column in times else number
            shown.append(Column(heading, map(say, raw[column]), number=True, by=column))
    return Table(
        name=name,
        title=title,
        caption=caption,
        raw=raw,
        columns=tuple(shown),
        kinds=tuple(raw["kind"]),
    )


Pick = Callable[[dict[str, Any]], float | None]
_TIMES = ("seconds", "score_seconds")
_ERRORS = ("truncation", "rounding")


def over_seeds(entries: list[TrialResult], picks: Mapping[str, Pick]) -> dict[str, Any]:
    """Return means and spreads of what is picked from the finished results, and the status."""
    done = [entry.result for entry in entries if entry.result is not None]
    record: dict[str, Any] = {"n_seeds": len(done), "status": statuses_of(entries)}
    for name, pick in picks.items():
        mean, spread = mean_and_spread(pick(result) for result in done)
        record |= {name: mean, f"{name}_std": spread}
    kind = "ours" if done or not entries else row_kind(entries[0])["kind"]
    return record | {"kind": kind}


def skipped_rows(results: TrialResults, name: str, title: str) -> list[dict[str, Any]]:
    return [
        {"group": title, "method": "—", "status": f"skipped: {s['reason']}", "kind": "pending"}
        for s in results.plan.skipped
        if s["name"] == name
    ]


def found_of(results: TrialResults, kind: str, key: str, otherwise: Any) -> Any:
    return next((e.result[key] for e in results.of(kind) if e.result is not None), otherwise)


def table_of(
    results: TrialResults,
    name: str,
    title: str,
    caption: str,
    records: list[dict[str, Any]],
    columns: dict[str, str],
) -> Table:
    spreads = [c for column in columns for c in (column, f"{column}_std")]
    raw = frame(records, "kind", "group", "method", "n_seeds", *spreads, "status")
    rows = raw.to_dict("records")
    shown = [
        Column("Data set", raw["group"]),
        Column("Objective", raw["method"]),
        Column("Seeds", map(number, raw["n_seeds"]), number=True),
    ]
    for column, heading in columns.items():
        if column in _TIMES:
            texts = [duration(row[column]) for row in rows]
        elif column in _ERRORS:
            texts = [number(row[column], 2) for row in rows]
        else:
            texts = [with_spread(row[column], row[f"{column}_std"]) for row in rows]
        shown.append(Column(heading, texts, number=True, by=column))
    return Table(
        name=name,
        title=title,
        caption=f"{caption} {conditions_of(results, [name])}",
        raw=raw,
        columns=(*shown, Column("Status", raw["status"])),
        kinds=tuple(raw["kind"]),
    )
