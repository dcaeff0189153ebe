"""Grids: which variants run on which datasets with how many seeds."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ablations.cells import Cell, DataFacts, resolve
from ablations.settings import BUDGETS, Settings, coerce
from ablations.variants import ALL_VARIANTS, PAPER_VARIANTS, Variant, parse_variant
from scorekit.data import prepare
from scorekit.files import CorruptFile, read_json, write_json
from scorekit.metrics import default_extractor, extractor_digest
from scorekit.techniques import initial_noise_scale


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A named set of variants; what is None or empty is left to the budget and the flags."""

    name: str
    variants: tuple[Variant, ...]
    datasets: tuple[str, ...] = ()
    seeds: int | None = None
    budget: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


GRIDS = {
    grid.name: grid
    for grid in (
        Grid(name="paper", variants=PAPER_VARIANTS),
        Grid(name="factorial", variants=ALL_VARIANTS),
    )
}

_TOML_KEYS = {"name", "variants", "datasets", "seeds", "budget", "set"}


def load_grid(name: str) -> Grid:
    """Return a grid by name, or from a TOML file of the user's; raises ValueError where bad.

    The file's keys: ``variants`` (names, required), ``name``, ``datasets``, ``seeds``, ``budget``,
    and a table ``[set]`` of settings.
    """
    if name in GRIDS:
        return GRIDS[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise ValueError(f"grid {name!r} is unknown; known: {', '.join(GRIDS)}, or a .toml file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"grid file {name} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"grid file {name} is not TOML: {error}") from error
    if unknown := sorted(set(content) - _TOML_KEYS):
        known = ", ".join(sorted(_TOML_KEYS))
        raise ValueError(f"grid file {name}: key {unknown[0]!r} is unknown; known: {known}")

    def texts(key: str) -> list[str]:
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"grid file {name}: {key} = {value!r} must be a list of texts")
        return value

    variants = tuple(dict.fromkeys(parse_variant(text) for text in texts("variants")))
    if not variants:
        raise ValueError(f"grid file {name}: variants = [...] must name at least one variant")
    overrides = content.get("set", {})
    if not isinstance(overrides, dict):
        raise ValueError(f"grid file {name}: set must be a table of settings")
    seeds, budget = content.get("seeds"), content.get("budget")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool)):
        raise ValueError(f"grid file {name}: seeds = {seeds!r} must be a whole number")
    if budget is not None and budget not in BUDGETS:
        raise ValueError(f"grid file {name}: budget = {budget!r}; known: {', '.join(BUDGETS)}")
    return Grid(
        name=str(content.get("name", path.stem)),
        variants=variants,
        datasets=tuple(texts("datasets")),
        seeds=seeds,
        budget=budget,
        overrides={key: coerce(key, value) for key, value in overrides.items()},
    )


def data_facts(
    spec: str, data_root: Path, *, image_size: int | None, inception_weights: Path | None
) -> DataFacts:
    """Prepare a dataset where needed and return what settings are derived from.

    ``spec`` is a name or ``imagefolder:PATH``. The maximum pairwise distance is kept beside the
    images, under their fingerprint. Raises ValueError for bad data or weights.
    """
    dataset = prepare(spec, data_root, image_size=image_size)
    assert dataset.directory is not None
    extractor = default_extractor(dataset.name, dataset.channels, inception_weights)
    path = data_root / f"max-distance-{dataset.fingerprint[:16]}.json"
    try:
        distance = float(read_json(path)["max_distance"])
    except (FileNotFoundError, CorruptFile, KeyError, TypeError):
        distance = initial_noise_scale(np.asarray(dataset.train))
        write_json(path, {"max_distance": distance})
    return DataFacts(
        name=dataset.name,
        store=str(dataset.directory.relative_to(data_root)),
        fingerprint=dataset.fingerprint,
        channels=dataset.channels,
        image_size=dataset.image_size,
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        flip=dataset.flip,
        max_distance=distance,
        extractor=extractor,
        extractor_fingerprint=extractor_digest(
            extractor, inception_weights if extractor.startswith("inception") else None
        ),
    )


def build_cells(grid: Grid, settings: Settings, facts: list[DataFacts], seeds: int) -> list[Cell]:
    """Return every cell of a grid: dataset by dataset, variant by variant, seed by seed."""
    return [
        cell.with_seed(seed)
        for data in facts
        for variant in grid.variants
        for cell in [resolve(settings, variant, data, seed=0)]
        for seed in range(seeds)
    ]
