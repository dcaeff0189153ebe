"""Grids: which variants run on which datasets with how many seeds."""

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.engine.manifest import Manifest, joined_names, split_names
from ablations.engine.settings import Budget, coerce
from ablations.pipeline.cell import Cell, with_plugins
from ablations.pipeline.data import DataFacts, with_plugin_extractor
from ablations.pipeline.variants import ALL_VARIANTS, NCSNV2, PAPER_VARIANTS, Variant, parse_variant
from ablations.studies.ncsnv2.resolution import variant_of, weights_in
from ablations.studies.ncsnv2.rows import Row, make_row, read_row, read_values, rows_of, varied
from ablations.studies.ncsnv2.settings import BUDGETS, SHARED_SETTINGS, Profile
from scorekit.training.settings import TrainSettings


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
    plugins: tuple[Path, ...] = ()  # files of the user's code


#: The grid that has only rows of networks given by --checkpoint.
RELEASED = "released"
CONSISTENT = make_row(NCSNV2, sampler="consistent")
#: L (None: as trained; below 1: a share of that) x T. The shares are those of 25, 100 and 232 noise
#: scales on CIFAR-10, which others have measured with the authors' checkpoint.
STEPS = (
    *(
        make_row(NCSNV2, sampling_levels=levels, n_steps_each=n_steps)
        for levels, n_steps in ((25 / 232, 1), (100 / 232, 1), (None, 1), (None, 3), (None, 5))
    ),
    *(make_row(NCSNV2, sampler="consistent", n_steps_each=n_steps) for n_steps in (1, 3, 5)),
)

#: What came after Techniques 1, 2 and 4: samplers, starts, schedules and step sizes of one
#: network, then other noise scales to train on. Sources: arXiv:2009.05475, 2011.13456, 2206.00364.
SUCCESSORS = (
    Row(NCSNV2),
    *(
        make_row(NCSNV2, sampler=sampler)
        for sampler in (
            *("consistent", "reverse_diffusion", "predictor_corrector", "ancestral", "heun"),
        )
    ),
    make_row(NCSNV2, sampler="heun", schedule="rho"),
    make_row(NCSNV2, step_size_rule="steady_state"),
    make_row(NCSNV2, step_size_rule="snr"),
    make_row(NCSNV2, start="gaussian"),
    *(make_row(NCSNV2, noise_levels=levels) for levels in ("log_uniform", "log_normal")),
)
#: Technique 3 as one corner of {told the noise scale, blind} x {plain, preconditioned}.
NOISE_CONDITIONING = (
    Row(NCSNV2),
    *(make_row(NCSNV2, conditioning=how) for how in ("none", "normalisation", "edm")),
)
#: Technique 5 as a curve: averages of one training, from its raw weights on.
AVERAGES = (
    Row(dataclasses.replace(NCSNV2, ema=False)),
    *(make_row(NCSNV2, ema=name) for name in ("0.9", "0.97", "0.99")),
    Row(NCSNV2),
    *(make_row(NCSNV2, ema=f"power:{width}") for width in (0.02, 0.05, 0.1, 0.2)),
)

GRIDS = {
    grid.name: grid
    for grid in (
        # The paper's four, and the sampler of its reference 9 (Jolicoeur-Martineau et al. 2020).
        Grid(name="paper", rows=(*map(Row, PAPER_VARIANTS), CONSISTENT)),
        Grid(name="factorial", rows=tuple(map(Row, ALL_VARIANTS))),
        Grid(name="steps", rows=STEPS),
        Grid(name=RELEASED, rows=()),
        Grid(name="successors", rows=SUCCESSORS),
        Grid(name="noise-conditioning", rows=NOISE_CONDITIONING),
        Grid(name="ema", rows=AVERAGES),
        # Pang et al. 2020, Fig. A(c): NCSNs by sliced score matching, with and without finite
        # differences, here with averaged weights and beside the usual denoising objective.
        Grid(
            name="objectives",
            rows=(
                Row(Variant(ema=True)),
                *(make_row(Variant(ema=True), objective=o) for o in ("ssm_vr", "fd_ssm_vr")),
            ),
        ),
    )
}


def with_checkpoints(grid: Grid, paths: Sequence[str]) -> Grid:
    """Return a grid with a row for each kind of weights in each file.

    Raises ValueError for ``released``, which has no others, without a file.
    """
    if RELEASED in split_names(grid.name) and not paths:
        raise ValueError(f"--grid {RELEASED}: --checkpoint PATH must give a network")
    rows = [
        make_row(variant_of(path, weights), checkpoint=path, label=f"{Path(path).stem}, {weights}")
        for path in paths
        for weights in weights_in(path)
    ]
    return dataclasses.replace(grid, rows=(*grid.rows, *rows))


_TOML_KEYS = {
    *("name", "variants", "rows", "vary", "datasets", "seeds", "budget", "set", "slurm", "plugin")
}


def load_grid(names: str) -> Grid:
    """Return a grid by name, or from a TOML file of the user's; raises ValueError where bad.

    Of several, separated by commas, the rows of all under the settings of the first.

    The file's keys: ``variants`` (names) and ``[[rows]]`` (tables with ``variant``, any of
    ROW_SETTINGS and a ``label``), one of them at least; ``[vary]``, lists of values that every row
    is made with; ``name``, ``datasets``, ``seeds``, ``budget``, a table ``[set]`` of settings, and
    a table ``[slurm]``, and ``plugin``, a Python file or several, beside the grid's file.
    """
    listed = [names] if Path(names).is_file() else [n.strip() for n in names.split(",")]
    first, *others = (_load_one(name) for name in dict.fromkeys(listed))
    rows = [row for grid in (first, *others) for row in grid.rows]
    name = joined_names([grid.name for grid in (first, *others)])
    plugins = tuple(path for grid in (first, *others) for path in grid.plugins)
    rows = list(dict.fromkeys(rows))
    return dataclasses.replace(first, name=name, rows=tuple(rows), plugins=plugins)


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

    if isinstance(content.get("plugin"), str):
        content["plugin"] = [content["plugin"]]
    plugins = texts("plugin")
    rows = [Row(parse_variant(text)) for text in texts("variants")]
    try:
        rows += [read_row(table) for table in _tables(content.get("rows", []))]
        rows = list(varied(rows, _vary(content.get("vary", {}))))
    except ValueError as error:
        raise ValueError(f"grid file {name}: {error}") from error
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
        plugins=tuple(path.parent / text for text in plugins),
    )


def _tables(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("rows must be tables, each begun by [[rows]]")
    return value


def _vary(table: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(table, dict) or not all(isinstance(v, list) and v for v in table.values()):
        raise ValueError("vary must be a table of lists, like width = [16, 32]")
    return {key: read_values("[vary]", key, values) for key, values in table.items()}


def budget_cells(
    grid: Grid, budget: Budget, overrides: Mapping[str, Any], facts: list[DataFacts], seeds: int
) -> list[Cell]:
    """Return every cell of a grid under a budget: dataset by dataset, row by row, seed by seed.

    Settings follow each data set's images. Rows that come to the same cell, as shares of a short
    ladder may, are one. Raises ValueError for a setting out of range, and for different cells of
    one name.
    """
    cells: dict[str, Cell] = {}
    for data in facts:
        for row in grid.rows:
            cell = row.resolve(budget, overrides, data)
            for seed in range(seeds):
                seeded = cell.with_seed(seed)
                if cells.setdefault(seeded.name, seeded) != seeded:
                    raise ValueError(
                        f"grid {grid.name}: two rows are called {cell.label} on {data.name}; "
                        "leave one out"
                    )
    return _with_common_averages(list(cells.values()))


def _with_common_averages(cells: list[Cell]) -> list[Cell]:
    """Return cells in which a training keeps all averages that its rows sample: it is then one."""
    averages: dict[tuple[str, TrainSettings], dict[str, None]] = {}

    def alike(cell: Cell) -> tuple[str, TrainSettings]:
        return cell.data.fingerprint, dataclasses.replace(cell.train, ema_profiles=())

    for cell in cells:
        averages.setdefault(alike(cell), {}).update(dict.fromkeys(cell.train.ema_profiles))
    found = {key: tuple(sorted(names)) for key, names in averages.items()}
    return [
        with_plugins(
            dataclasses.replace(
                cell, train=dataclasses.replace(cell.train, ema_profiles=found[alike(cell)])
            )
        )
        for cell in cells
    ]


def renewed(
    begun: Manifest, budget: Budget, prepared: Callable[[DataFacts], DataFacts]
) -> Manifest:
    """Return what a folder holds, with the rows resolved again whose plugins are others now.

    ``prepared`` gives the facts of a data set of which another version of a plugin knows.
    """

    def again(cell: Cell) -> Cell:
        data, now = with_plugin_extractor(cell.data), with_plugins(cell)
        if cell == now and cell.data == data:
            return cell
        if of_kind("dataset", cell) != of_kind("dataset", now):
            data = prepared(data)
        (row,) = rows_of([cell])
        new = row.resolve(budget, begun.overrides, data).with_seed(cell.seed)
        train = dataclasses.replace(new.train, ema_profiles=cell.train.ema_profiles)
        return with_plugins(dataclasses.replace(new, train=train))

    def of_kind(kind: str, cell: Cell) -> list[tuple[str, str, str]]:
        return [plugin for plugin in cell.plugins if plugin[0] == kind]

    return dataclasses.replace(begun, units=[again(cell) for cell in begun.units])


def with_known_averages(cells: list[Cell], existing: Manifest | None) -> list[Cell]:
    """Return cells, of which those that a folder holds keep the averages that it trained them with.

    Which averages are kept changes no weights: a row that is there is not another because rows
    beside it sample more of them.
    """
    known = {} if existing is None else {cell.name: cell for cell in existing.units}

    def kept(cell: Cell) -> Cell:
        averages = known.get(cell.name, cell).train.ema_profiles
        if not set(averages) >= {*filter(None, [cell.ema])}:
            return cell
        train = dataclasses.replace(cell.train, ema_profiles=averages)
        return dataclasses.replace(cell, train=train)

    return [kept(cell) for cell in cells]


def rows_beside(
    grid: Grid,
    budget: Budget,
    overrides: Mapping[str, Any],
    facts: Iterable[DataFacts],
    *,
    base: Budget,
    base_overrides: Mapping[str, Any],
) -> Grid:
    """Return a grid's rows under a budget as rows under another, in whose folder they come.

    Each has what differs as settings of its own. Raises ValueError for what no row can have.
    """
    apart: dict[str, Any] = {} if budget.name == base.name else {"budget": budget.name}
    sizes = {data.image_size for data in facts}
    for key in {**base_overrides, **overrides}:
        if key in overrides:
            values = [overrides[key]]
        else:
            values = [getattr(budget.settings_for(size, {}), key) for size in sizes]
        if len(set(values)) > 1:
            raise ValueError(
                f"the folder holds rows with {key} = {base_overrides[key]}, and the budget "
                f"{budget.name} has another for images of each size: give --set {key}=VALUE"
            )
        if key not in base_overrides or base_overrides[key] != values[0]:
            if key in SHARED_SETTINGS:
                raise ValueError(
                    f"--set {key}={values[0]}: all rows of a folder have the same images "
                    f"({key} = {base_overrides.get(key)}); choose another --out"
                )
            apart[key] = values[0]
    return dataclasses.replace(grid, rows=tuple(row.beside(apart) for row in grid.rows))
