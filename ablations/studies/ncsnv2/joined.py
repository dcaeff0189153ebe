"""Results of several folders as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.reporting.wording import joined
from ablations.studies.ncsnv2.collect import collect
from ablations.studies.ncsnv2.results import APART_COLUMNS, FRAMES, Results
from ablations.studies.ncsnv2.rows import ROW_SETTINGS

#: What is once for a row or training, however many folders have it.
_ROW, _TRAINING = ["dataset", "variant", "seed"], ["dataset", "training", "seed"]


def load(*folders: Path | str) -> Results:
    """Return what output folders hold together: every frame of it is a tidy table.

    Rows of one name and the same settings are one, and their seeds are put together; a seed that
    several folders have is the first's. Where a name stands for different settings, each row is
    named after its folder too ("NCSNv2 [wide]"), and the settings that differ become columns.
    Raises ValueError for no folder, one that holds no grid, and a data set's name that stands for
    different images.
    """
    if not folders:
        raise ValueError("no folder was given")
    paths = [Path(folder) for folder in folders]
    return join(dict(zip(_names(paths), map(collect, paths), strict=True)))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as much of the way to them as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
        if length > max(map(len, parts)):
            raise ValueError("a folder was given twice")
    return ["/".join(part[-length:]) for part in parts]


def join(parts: dict[str, Results]) -> Results:
    """Return results by the name of their folder as one; see :func:`load`."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    settings = {name: _settings(results) for name, results in parts.items()}
    _check_images(settings)
    apart, named = _named_apart(settings)
    renamed = [_renamed(results, named[name]) for name, results in parts.items()]
    frames: dict[str, pd.DataFrame] = {}
    for name in FRAMES:
        frame = _stacked([getattr(results, name) for results in renamed])
        frames[name] = frame.drop_duplicates(ignore_index=True)
    for name in ("cells", "distances", "qualities", "extrapolations", "timings"):
        frames[name] = _first_of_each(renamed, name, _ROW)
    for name in ("losses", "held_out_losses"):
        frames[name] = _first_of_each(renamed, name, _TRAINING)
    frames["apart"] = _apart(parts, settings, apart, named)
    cells = frames["cells"]
    done = int((cells["status"] == "done").sum())
    first = renamed[0]

    def once(kind: str) -> list[Any]:
        found: dict[tuple[Any, ...], Any] = {}
        for results in renamed:
            for each in getattr(results, kind):
                key = (each.dataset, each.variant, each.seed, each.denoise, each.iteration)
                found.setdefault((*key, each.weights, getattr(each, "snapshot", "")), each)
        return list(found.values())

    runs = [results.run for results in parts.values()]
    run = dict(first.run) | {
        "grid": " + ".join(dict.fromkeys(str(run["grid"]) for run in runs)),
        "budget": " / ".join(dict.fromkeys(str(run["budget"]) for run in runs)),
        "datasets": list(dict.fromkeys(name for run in runs for name in run["datasets"])),
        "complete": done == len(cells),
        "codes": sorted({code for run in runs for code in run["codes"]}),
        "outdated": joined([run["outdated"] for run in runs], "; "),
        "hardware": joined([run["hardware"] for run in runs]),
        "n_cells": len(cells),
        "n_done": done,
    }
    return replace(
        first,
        run=run,
        **frames,
        samples=once("samples"),
        interpolations=once("interpolations"),
        neighbours=once("neighbours"),
        real={k: v for results in reversed(renamed) for k, v in results.real.items()},
        held_out={k: v for results in reversed(renamed) for k, v in results.held_out.items()},
    )


Row = tuple[str, str]


def _settings(results: Results) -> dict[Row, dict[str, str]]:
    """Return every setting of every row."""
    found: dict[Row, dict[str, str]] = {}
    for dataset, variant, setting, value in results.settings.itertuples(index=False, name=None):
        found.setdefault((dataset, variant), {})[setting] = value
    return found


def _check_images(settings: dict[str, dict[Row, dict[str, str]]]) -> None:
    images: dict[str, tuple[str, str]] = {}
    for folder, rows in settings.items():
        for (dataset, _), of_row in rows.items():
            fingerprint = of_row.get("data: fingerprint", "")
            where, before = images.setdefault(dataset, (folder, fingerprint))
            if before != fingerprint:
                raise ValueError(f"{where} and {folder} have different images called {dataset}")


def _named_apart(
    settings: dict[str, dict[Row, dict[str, str]]],
) -> tuple[set[str], dict[str, dict[Row, str]]]:
    """Return the settings in which rows of one name differ, and the new names of such rows."""
    apart: set[str] = set()
    named: dict[str, dict[Row, str]] = {folder: {} for folder in settings}
    for row in {row for rows in settings.values() for row in rows}:
        having = {folder: rows[row] for folder, rows in settings.items() if row in rows}
        kinds = {tuple(sorted(_own(of_row).items())) for of_row in having.values()}
        if len(kinds) < 2:
            continue
        for folder in having:
            named[folder][row] = f"{row[1]} [{folder}]"
        keys = {key for of_row in having.values() for key in _own(of_row)}
        apart |= {key for key in keys if len({of.get(key) for of in having.values()}) > 1}
    return apart, named


def _own(of_row: dict[str, str]) -> dict[str, str]:
    """Return the settings that say what a row is: not how many pictures were written."""
    return {key: value for key, value in of_row.items() if key not in ("n_dump", "ema_profiles")}


def _renamed(results: Results, named: dict[Row, str]) -> Results:
    """Return results whose rows have other names, and whose trainings are then told apart too."""
    if not named:
        return results
    suffix = {row: name[len(row[1]) :] for row, name in named.items()}
    cells = results.cells
    trainings = {
        (dataset, training): suffix[dataset, variant]
        for dataset, variant, training in cells[["dataset", "variant", "training"]].itertuples(
            index=False, name=None
        )
        if (dataset, variant) in suffix
    }
    frames = {}
    for name in FRAMES:
        frame = getattr(results, name).copy()
        for column, changes in (("variant", suffix), ("training", trainings)):
            if column in frame.columns:
                frame[column] = [
                    f"{value}{changes.get((dataset, value), '')}"
                    if isinstance(value, str)
                    else value
                    for dataset, value in zip(frame["dataset"], frame[column], strict=True)
                ]
        frames[name] = frame

    def renamed(each: Any) -> Any:
        return replace(each, variant=each.variant + suffix.get((each.dataset, each.variant), ""))

    return replace(
        results,
        **frames,
        samples=[renamed(each) for each in results.samples],
        interpolations=[renamed(each) for each in results.interpolations],
        neighbours=[renamed(each) for each in results.neighbours],
    )


def _first_of_each(parts: Sequence[Results], name: str, keys: list[str]) -> pd.DataFrame:
    """Return the frames' rows, those of a key from the first that has it."""
    taken: set[tuple[Any, ...]] = set()
    found = []
    for results in parts:
        frame = getattr(results, name)
        here = list(frame[keys].astype(object).itertuples(index=False, name=None))
        found.append(frame[np.array([key not in taken for key in here], dtype=bool)])
        taken |= set(here)
    return _stacked(found)


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    # Without empty ones, whose columns' types change those of the others.
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def _apart(
    parts: dict[str, Results],
    settings: dict[str, dict[Row, dict[str, str]]],
    differing: set[str],
    named: dict[str, dict[Row, str]],
) -> pd.DataFrame:
    """Return the settings that rows of any folder set apart, or in which folders differ."""
    given = {key for results in parts.values() for key in results.apart["setting"]}
    keys = [key for key in ROW_SETTINGS if key in given | differing]
    records: dict[tuple[str, str, str], dict[str, Any]] = {}
    for folder, results in parts.items():
        own = {
            (dataset, variant, setting): (value, is_given)
            for dataset, variant, setting, value, is_given in results.apart.itertuples(
                index=False, name=None
            )
        }
        budget = str(results.run["budget"]).partition(",")[0]
        for row, of_row in settings[folder].items():
            dataset, variant = row
            for key in keys:
                plain = budget if key == "budget" else of_row.get(key)
                value, is_given = own.get((dataset, variant, key), (plain, False))
                name = named[folder].get(row, variant)
                records.setdefault(
                    (dataset, name, key),
                    {"dataset": dataset, "variant": name, "setting": key, "value": value}
                    | {"given": bool(is_given) or key in differing},
                )
    frame = pd.DataFrame(list(records.values()), columns=list(APART_COLUMNS))
    return frame.astype(APART_COLUMNS)
