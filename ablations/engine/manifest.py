"""``OUT/grid.json``: which cells an output folder holds, with every setting resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ablations.engine.stages import RESULTS_VERSION
from ablations.pipeline.cell import Cell, cell_from_json
from ablations.studies.finite_difference.trials import Trial
from scorekit.files import CorruptFile, read_sealed_json, write_sealed_json

_T = TypeVar("_T")
_FORMAT = 2
_AND = " + "  # between the names of grids that share a folder


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A grid's name, budget and overrides, and its cells; ``data_root`` is relative to OUT."""

    grid: str
    budget: str
    overrides: dict[str, Any]
    data_root: str
    cells: list[Cell]

    def merged(self, other: Manifest, out: Path) -> Manifest:
        """Return this manifest with the cells of ``other`` added.

        More datasets, seeds and other grids may be added to a folder; raises ValueError where
        budget, settings or a dataset differ, because their results would share tables unmarked.
        """
        for key in ("budget", "overrides"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                raise ValueError(
                    f"--out {out} holds {key} {mine!r}, not {theirs!r}; choose another --out"
                )
        cells = {cell.name: cell for cell in self.cells}
        for cell in other.cells:
            if cells.setdefault(cell.name, cell) != cell:
                raise ValueError(
                    f"--out {out} holds another {cell.name}: its data or derived settings changed "
                    "since; choose another --out"
                )
        grids = dict.fromkeys([*self.grid.split(_AND), *other.grid.split(_AND)])
        return replace(
            self, grid=_AND.join(grids), cells=list(cells.values()), data_root=other.data_root
        )


def load_manifest(out: Path) -> Manifest | None:
    """Return the manifest of an output folder, or None where there is none.

    Raises ValueError for a folder written by an incompatible version, or a damaged manifest.
    """
    return read_versioned(
        out / "grid.json",
        _FORMAT,
        lambda record: Manifest(
            grid=record["grid"],
            budget=record["budget"],
            overrides=record["overrides"],
            data_root=record["data_root"],
            cells=[cell_from_json(cell) for cell in record["cells"]],
        ),
    )


def read_versioned(path: Path, format: int, build: Callable[[dict[str, Any]], _T]) -> _T | None:
    """Return what ``build`` makes of a file's record, or None where there is no file.

    Raises ValueError for one of another format or version of results, or a damaged one, on which
    ``build`` raises AttributeError, KeyError, TypeError or ValueError.
    """
    try:
        record = read_sealed_json(path)
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        raise ValueError(f"{error}; remove it, and the same command writes it again") from error
    versions = [record.get("format"), record.get("results_version")]
    if versions != [format, RESULTS_VERSION]:
        raise ValueError(
            f"{path.parent} was written by an incompatible version (format, results) = "
            f"{versions}; this one has {[format, RESULTS_VERSION]}; choose another --out"
        )
    try:
        return build(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and the same command writes it again"
        ) from error


def save_manifest(manifest: Manifest, out: Path) -> bool:
    """Write ``OUT/grid.json`` atomically; returns False where it was the same already."""
    if load_manifest(out) == manifest:
        return False
    write_sealed_json(out / "grid.json", _record(manifest))
    return True


def _record(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "results_version": RESULTS_VERSION,
        "grid": manifest.grid,
        "budget": manifest.budget,
        "overrides": manifest.overrides,
        "data_root": manifest.data_root,
        "cells": [cell.to_json() for cell in manifest.cells],
    }


_FORMAT = 1
#: What says that an output folder holds this grid, and which trials.
PLAN_FILE = "finite-difference.json"


@dataclass(frozen=True, kw_only=True)
class FiniteDifferencePlan:
    """What an output folder holds; ``data_root`` is relative to it."""

    budget: str
    overrides: dict[str, Any]
    data_root: str
    trials: list[Trial]
    skipped: list[dict[str, str]]

    def merged(self, other: FiniteDifferencePlan, out: Path) -> FiniteDifferencePlan:
        """Return this plan with the trials of ``other`` added: more parts, seeds or tables.

        Raises ValueError where their settings differ, because they would share tables unmarked.
        """
        for key in ("budget", "overrides"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                raise ValueError(
                    f"--out {out} holds {key} {mine!r}, not {theirs!r}; choose another --out"
                )
        trials = {trial.name: trial for trial in self.trials}
        for trial in other.trials:
            there = trials.setdefault(trial.name, trial)
            if there != trial:
                keys = {*there.settings, *trial.settings}
                changed = [
                    key
                    for key in sorted(keys)
                    if there.settings.get(key) != trial.settings.get(key)
                ]
                raise ValueError(
                    f"--out {out} holds another {trial.name}: {', '.join(changed)} changed since; "
                    "choose another --out"
                )
        skipped = {entry["name"]: entry for entry in [*self.skipped, *other.skipped]}
        for name in list(skipped):
            if any(trial.name.startswith(f"{name}/") for trial in trials.values()):
                del skipped[name]
        return replace(other, trials=list(trials.values()), skipped=[*skipped.values()])


def load_plan(out: Path) -> FiniteDifferencePlan | None:
    """Return the plan of an output folder, or None where there is none.

    Raises ValueError for one of an incompatible version, or a damaged one.
    """
    return read_versioned(
        out / PLAN_FILE,
        _FORMAT,
        lambda record: FiniteDifferencePlan(
            budget=record["budget"],
            overrides=record["overrides"],
            data_root=record["data_root"],
            trials=[Trial(**trial) for trial in record["trials"]],
            skipped=record["skipped"],
        ),
    )


def save_plan(plan: FiniteDifferencePlan, out: Path) -> bool:
    """Write the plan of an output folder atomically; False where it was the same already."""
    if load_plan(out) == plan:
        return False
    record = dataclasses.asdict(plan) | {"format": _FORMAT, "results_version": RESULTS_VERSION}
    write_sealed_json(out / PLAN_FILE, record)
    return True
