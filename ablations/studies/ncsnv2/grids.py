"""Grids: which variants run on which datasets with how many seeds."""

import dataclasses
import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.engine.manifest import joined_names
from ablations.engine.settings import Budget, apply_overrides, coerce
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import ALL_VARIANTS, NCSNV2, PAPER_VARIANTS, Variant, parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import BUDGETS, ROW_SETTINGS, Profile, Settings
from ablations.studies.ncsnv2.without_effect import without_effect

_log = logging.getLogger("scorekit")


@dataclass(frozen=True)
class Row:
    """A variant of a grid, and what of ROW_SETTINGS it sets apart from the grid's others."""

    variant: Variant
    overrides: tuple[tuple[str, Any], ...] = ()

    def resolve(self, settings: Settings, data: DataFacts) -> Cell:
        """Return the row's cell with seed 0.

        Raises ValueError for a value out of range, or one of the row's own without effect.
        """
        overrides = dict(self.overrides)
        cell = resolve(apply_overrides(settings, overrides), self.variant, data, seed=0)
        for key, reason in without_effect(cell, overrides).items():
            raise ValueError(
                f"the row {cell.label} with {key} = {overrides[key]}: it has no effect there, "
                f"{reason}"
            )
        parts = [str(overrides[key]) for key in ("objective", "sampler") if key in overrides]
        if {"sampling_levels", "n_steps_each"} & set(overrides):
            parts.append(f"{cell.sampling_levels}×{cell.n_steps_each}")
        if "step_size" in overrides:
            parts.append(f"ε={cell.step_size:.3g}")
        return dataclasses.replace(cell, row=", ".join(parts))


def _row(variant: Variant, **overrides: Any) -> Row:
    return Row(variant, tuple(sorted(overrides.items())))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A named set of rows; what is None or empty is left to the budget and the flags."""

    name: str
    rows: tuple[Row, ...]
    datasets: tuple[str, ...] = ()
    seeds: int | None = None
    budget: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(
        default_factory=dict
    )  # as ablations.executors.slurm.settings takes it


CONSISTENT = _row(NCSNV2, sampler="consistent")
#: L (None: as trained; below 1: a share of that) x T. The shares are those of 25, 100 and 232 noise
#: scales on CIFAR-10, which others have measured with the authors' checkpoint.
STEPS = (
    *(
        _row(NCSNV2, sampling_levels=levels, n_steps_each=n_steps)
        for levels, n_steps in ((25 / 232, 1), (100 / 232, 1), (None, 1), (None, 3), (None, 5))
    ),
    *(_row(NCSNV2, sampler="consistent", n_steps_each=n_steps) for n_steps in (1, 3, 5)),
)

GRIDS = {
    grid.name: grid
    for grid in (
        # The paper's four, and the sampler of its reference 9 (Jolicoeur-Martineau et al. 2020).
        Grid(name="paper", rows=(*map(Row, PAPER_VARIANTS), CONSISTENT)),
        Grid(name="factorial", rows=tuple(map(Row, ALL_VARIANTS))),
        Grid(name="steps", rows=STEPS),
        # Pang et al. 2020, Fig. A(c): NCSNs by sliced score matching, with and without finite
        # differences, here with averaged weights and beside the usual denoising objective.
        Grid(
            name="objectives",
            rows=(
                Row(Variant(ema=True)),
                *(_row(Variant(ema=True), objective=o) for o in ("ssm_vr", "fd_ssm_vr")),
            ),
        ),
    )
}

_TOML_KEYS = {"name", "variants", "rows", "datasets", "seeds", "budget", "set", "slurm"}


def load_grid(names: str) -> Grid:
    """Return a grid by name, or from a TOML file of the user's; raises ValueError where bad.

    Of several, separated by commas, the rows of all under the settings of the first.

    The file's keys: ``variants`` (names) and ``[[rows]]`` (tables with ``variant`` and any of
    ROW_SETTINGS), one of them at least; ``name``, ``datasets``, ``seeds``, ``budget``, a table
    ``[set]`` of settings, and a table ``[slurm]``.
    """
    listed = [names] if Path(names).is_file() else [n.strip() for n in names.split(",")]
    first, *others = (_load_one(name) for name in dict.fromkeys(listed))
    rows = [row for grid in (first, *others) for row in grid.rows]
    name = joined_names([grid.name for grid in (first, *others)])
    return dataclasses.replace(first, name=name, rows=tuple(dict.fromkeys(rows)))


def _load_one(name: str) -> Grid:
    if name in GRIDS:
        return GRIDS[name]
    path = Path(name)
    if path.suffix != ".toml":
        known = ", ".join(GRIDS)
        raise ValueError(f"grid {name!r} is unknown; known: {known}, or a .toml file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"grid file {name} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"grid file {name} is nested too deeply to be read") from error
    except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits
        raise ValueError(f"grid file {name} is not TOML: {error}") from error
    if unknown := sorted(set(content) - _TOML_KEYS):
        known = ", ".join(sorted(_TOML_KEYS))
        raise ValueError(f"grid file {name}: key {unknown[0]!r} is unknown; known: {known}")

    def texts(key: str) -> list[str]:
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"grid file {name}: {key} = {value!r} must be a list of texts")
        return value

    rows = [Row(parse_variant(text)) for text in texts("variants")]
    rows += [_toml_row(name, table) for table in _tables(name, content.get("rows", []))]
    if not rows:
        raise ValueError(
            f"grid file {name}: variants = [...] or [[rows]] must name at least one variant"
        )
    overrides, slurm = content.get("set", {}), content.get("slurm", {})
    for key, table in (("set", overrides), ("slurm", slurm)):
        if not isinstance(table, dict):
            raise ValueError(f"grid file {name}: {key} must be a table of settings")
    seeds, budget = content.get("seeds"), content.get("budget")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool)):
        raise ValueError(f"grid file {name}: seeds = {seeds!r} must be a whole number")
    if budget is not None and budget not in BUDGETS:
        raise ValueError(f"grid file {name}: budget = {budget!r}; known: {', '.join(BUDGETS)}")
    return Grid(
        name=str(content.get("name", path.stem)),
        rows=tuple(dict.fromkeys(rows)),
        datasets=tuple(texts("datasets")),
        seeds=seeds,
        budget=budget,
        overrides={key: coerce(key, value, Profile) for key, value in overrides.items()},
        slurm=slurm,
    )


def _tables(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"grid file {name}: rows must be tables, each begun by [[rows]]")
    return value


def _toml_row(name: str, table: dict[str, Any]) -> Row:
    known = ("variant", *ROW_SETTINGS)
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(
            f"grid file {name}: [[rows]] key {unknown[0]!r} is unknown; known: {', '.join(known)}"
        )
    if not isinstance(table.get("variant"), str):
        raise ValueError(f"grid file {name}: [[rows]] needs variant, the name of one")
    settings = {
        key: coerce(key, value, Settings) for key, value in table.items() if key != "variant"
    }
    return _row(parse_variant(table["variant"]), **settings)


def budget_cells(
    grid: Grid, budget: Budget, overrides: Mapping[str, Any], facts: list[DataFacts], seeds: int
) -> list[Cell]:
    """Return every cell of a grid under a budget, whose settings follow each data set's images.

    Raises as :func:`build_cells`.
    """
    return [
        cell
        for data in facts
        for cell in build_cells(
            grid, budget.settings_for(data.image_size, overrides), [data], seeds
        )
    ]


def build_cells(grid: Grid, settings: Settings, facts: list[DataFacts], seeds: int) -> list[Cell]:
    """Return every cell of a grid: dataset by dataset, row by row, seed by seed.

    Rows that come to the same cell, as shares of a short ladder may, are one. Raises ValueError for
    a setting out of range, and for different cells of one name.
    """
    cells: dict[str, Cell] = {}
    for data in facts:
        for row in grid.rows:
            cell = row.resolve(settings, data)
            for seed in range(seeds):
                seeded = cell.with_seed(seed)
                if cells.setdefault(seeded.name, seeded) != seeded:
                    raise ValueError(
                        f"grid {grid.name}: two rows are called {cell.label} on {data.name}; "
                        "leave one out"
                    )
    return list(cells.values())
