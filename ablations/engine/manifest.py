"""The file of an output folder that says what it holds, with every setting resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ablations.engine.plugins import Plugin, kept_plugins, load_plugins, save_plugins
from ablations.engine.stages import RESULTS_VERSION
from scorekit.files import CorruptFile, read_sealed_json, write_sealed_json

_T = TypeVar("_T")
_AND = " + "  # between the names of grids that share a folder


class Unit(Protocol):
    """What a study plans one by one: a cell of a table, a trial of an experiment."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A grid's name, budget and overrides, and its units; ``data_root`` is relative to OUT.

    ``skipped`` are units that cannot be, each with its ``name``, the ``part`` of the grid that it
    is of and the ``reason``. ``seeds`` is how many of each were asked for, where it was said.
    ``plugins`` are the user's files that register what the units name.
    """

    grid: str
    budget: str
    overrides: dict[str, Any]
    data_root: str
    units: list[Any]
    skipped: list[dict[str, str]] = field(default_factory=list)
    seeds: int | None = None
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """How one study's manifests are written: the file's name and version, and its units."""

    name: str
    version: int
    key: str  # of the units
    to_json: Callable[[Any], dict[str, Any]]
    from_json: Callable[[dict[str, Any]], Unit]
    grid: str  # what a file is of that names none

    def load(self, out: Path) -> Manifest | None:
        """Return the manifest of an output folder, or None where there is none.

        Its plugins are loaded. Raises ValueError for a folder written by an incompatible version,
        a damaged manifest, or a plugin that cannot be loaded.
        """
        path = out / self.name
        record = _read_record(path, self.version)
        if record is None:
            return None
        plugins = kept_plugins(_built(path, record, lambda r: dict(r.get("plugins", {}))), out)
        load_plugins(plugins)
        return _built(
            path,
            record,
            lambda record: Manifest(
                grid=record.get("grid", self.grid),
                budget=record["budget"],
                overrides=record["overrides"],
                data_root=record["data_root"],
                units=[self.from_json(unit) for unit in record[self.key]],
                skipped=record.get("skipped", []),
                seeds=record.get("seeds"),
                plugins=plugins,
            ),
        )

    def save(self, manifest: Manifest, out: Path) -> bool:
        """Write the manifest atomically, after its plugins; False where it was the same already."""
        same = self.load(out) == manifest
        load_plugins(manifest.plugins)  # and not those of before
        if same:
            return False
        save_plugins(manifest.plugins, out)
        record = {
            "format": self.version,
            "results_version": RESULTS_VERSION,
            "grid": manifest.grid,
            "budget": manifest.budget,
            "overrides": manifest.overrides,
            "data_root": manifest.data_root,
            self.key: [self.to_json(unit) for unit in manifest.units],
            "skipped": manifest.skipped,
            "seeds": manifest.seeds,
        }
        if manifest.plugins:
            record["plugins"] = {plugin.name: plugin.digest for plugin in manifest.plugins}
        write_sealed_json(out / self.name, record)
        return True

    def merged(self, begun: Manifest, added: Manifest, out: Path) -> Manifest:
        """Return what a begun folder holds with another manifest's units added.

        More data sets, seeds and other grids may be added to a folder; raises ValueError where
        budget, settings or a unit differ, because their results would share tables unmarked.
        """
        for key in ("budget", "overrides"):
            mine, theirs = getattr(begun, key), getattr(added, key)
            if mine != theirs:
                raise ValueError(
                    f"--out {out} holds {key} {mine!r}, not {theirs!r}; choose another --out"
                )
        units = {unit.name: unit for unit in begun.units}
        for unit in added.units:
            there = units.get(unit.name, unit)
            if there != unit:
                changed = ", ".join(_differing(self.to_json(there), self.to_json(unit)))
                raise ValueError(
                    f"--out {out} holds another {unit.name}: {changed} changed since; choose "
                    "another --out"
                )
            units[unit.name] = unit
        skipped = {entry["name"]: entry for entry in [*begun.skipped, *added.skipped]}
        for name in list(skipped):
            if any(unit_name.startswith(f"{name}/") for unit_name in units):
                del skipped[name]
        grids = dict.fromkeys([*split_names(begun.grid), *split_names(added.grid)])
        return dataclasses.replace(
            begun,
            grid=_AND.join(grids),
            units=list(units.values()),
            skipped=list(skipped.values()),
            data_root=added.data_root,
            seeds=added.seeds,
        )


def joined_names(names: Sequence[str]) -> str:
    """Return the name of several grids in one folder."""
    return _AND.join(names)


def split_names(grid: str) -> list[str]:
    """Return the names of the grids that share a folder."""
    return grid.split(_AND)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two records differ; of records within them, theirs."""
    found = []
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            found += _differing(mine, theirs)
        else:
            found.append(key)
    return found


def read_versioned(path: Path, format: int, build: Callable[[dict[str, Any]], _T]) -> _T | None:
    """Return what ``build`` makes of a file's record, or None where there is no file.

    Raises ValueError for one of another format or version of results, or a damaged one, on which
    ``build`` raises AttributeError, KeyError, TypeError or ValueError.
    """
    record = _read_record(path, format)
    return None if record is None else _built(path, record, build)


def _read_record(path: Path, format: int) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = read_sealed_json(path)
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
    return record


def _built(path: Path, record: dict[str, Any], build: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        return build(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and the same command writes it again"
        ) from error
