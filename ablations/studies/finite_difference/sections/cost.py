"""What each objective costs, by way of differentiating."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import pandas as pd

from ablations.reporting.paired import Paired
from ablations.reporting.pictures import FAINT, INK, Picture, dress_frame
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import memory, number, text_or_empty
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import (
    EXACT,
    FINITE,
    panels_of,
)
from ablations.studies.finite_difference.sections.rows import (
    PEAK,
    STEP,
    conditions_of,
    frame,
    row_kind,
    said,
    settings_of,
    status_of,
)
from ablations.studies.finite_difference.sections.wording import (
    MODEL_NAMES,
    OBJECTIVE_NAMES,
    SOURCE,
    between,
)
from scorekit.runtime.timing import median_interval

#: Memory per GPU of NCSN training in gigabytes, on four GPUs (to reviewer 3).
SOURCE_MEMORY = {"ssm": 6.3, "fd_ssm": 5.4}


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
    columns = (
        Column("Model", raw["group"]),
        Column("Objective", raw["method"]),
        Column("Way", [text_or_empty(row["way"]) for row in rows]),
        Column("Mode", [text_or_empty(row["mode"]) or "—" for row in rows]),
        Column("Time", [_milliseconds(row["seconds"]) for row in rows], number=True, by="seconds"),
        Column("× forward + backward", [number(row["ratio"]) for row in rows], number=True),
        Column(
            "95 %",
            [between(row["ratio_low"], row["ratio_high"]) for row in rows],
            number=True,
            by="ratio_low",
        ),
        Column(
            "Peak memory",
            [
                f"{row['peak_bytes'] / 1e9:.1f} G"
                if row["kind"] == "paper"
                else memory(row["peak_bytes"])
                for row in rows
            ],
            number=True,
            by="peak_bytes",
        ),
        Column("× its memory", [number(row["memory_ratio"]) for row in rows], number=True),
        Column("Status", raw["status"]),
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
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def _over(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def _milliseconds(seconds: float) -> str:
    return "—" if seconds is None or pd.isna(seconds) else f"{number(1e3 * seconds)} ms"


def cost_comparisons(results: TrialResults) -> list[dict[str, Any]]:
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
                records.append(common | {"quantity": STEP, "sort": "ratio"} | vars(interval))
                peaks = [
                    (label, [float(names[key]["peak_bytes"])])
                    for (label, _), key in ((first, mine), (second, name))
                ]
                ratio = peaks[1][1][0] / peaks[0][1][0]
                exactly = Paired(mean=ratio, low=math.nan, high=math.nan, n=1)
                records.append(
                    {"group": group, "first": peaks[0], "second": peaks[1]}
                    | {"quantity": PEAK, "sort": "ratio"}
                    | vars(exactly)
                )
    return records


def cost_picture(results: TrialResults) -> Picture | None:
    """Bars of time and memory in units of one forward and backward pass, for each model."""
    entries = [entry for entry in results.of("cost") if entry.result is not None]
    if not entries:
        return None
    shown: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = []
    for entry in entries:
        assert entry.result is not None
        reference, *rows = entry.result["rows"]
        # Exact SM is d times dearer, and would leave the others no room.
        rows = [row for row in rows if row["objective"] != "exact_sm"]
        shown.append((MODEL_NAMES[entry.trial.settings["model"]], rows, reference))
    heights = [len(rows) for _, rows, _ in shown]
    size = 10.0, 0.27 * sum(heights) + 2.2
    figure, panels = panels_of(results, len(shown), 2, size, height_ratios=heights)
    for i, (title, rows, reference) in enumerate(shown):
        left, right = panels[2 * i : 2 * i + 2]
        places = range(len(rows))
        colours = [FINITE if row["objective"].startswith("fd_") else EXACT for row in rows]
        left.barh(places, [row["ratio"] for row in rows], color=colours, height=0.7)
        for place, row in zip(places, rows, strict=True):
            interval = (row["ratio_low"], row["ratio_high"])
            left.plot(interval, (place, place), color=INK, linewidth=1.2)
        before = reference["peak_bytes"]
        memories = [math.nan if r["peak_bytes"] is None else r["peak_bytes"] / before for r in rows]
        right.barh(places, memories, color=colours, height=0.7)
        labels = [_row_name(row) for row in rows]
        left.set_yticks(places, labels)
        right.set_yticks(places, [""] * len(rows))
        for axes, what in ((left, "time"), (right, "peak memory")):
            axes.invert_yaxis()
            axes.set_title(f"{title}: {what}", fontsize=10, color=INK, loc="left")
            dress_frame(axes, "", "")
            axes.grid(axis="y", visible=False)
    for axes in panels[-2:]:
        axes.set_xlabel("× one forward and backward pass", color=FAINT, fontsize=9.5)
    return Picture(
        name="cost",
        title="Time and memory of a step",
        caption="In units of one forward and backward pass of the model itself; blue by automatic "
        "differentiation, orange by finite differences; black lines are 95 % intervals of the "
        f"median. Exact SM is in the table only. {conditions_of(results, ['cost'])}",
        alt="Bars of time and memory for every objective and way of differentiating",
        figure=figure,
    )


def _row_name(row: dict[str, Any]) -> str:
    way = row["way"].replace("finite_difference_sequential", "one by one")
    way = way.replace("finite_difference", "batched").replace("_", " ")
    mode = ", compiled" if row["mode"] == "compiled" else ""
    return f"{OBJECTIVE_NAMES[row['objective']]}, {way}{mode}"
