"""Facts of a data set that is not there, cells resolved from them, and where they would run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.engine.job import without_parts
from ablations.engine.settings import apply_overrides
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts
from ablations.pipeline.jobs import CellJob, grid_jobs
from ablations.pipeline.variants import parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import Profile


def facts(**changes: Any) -> DataFacts:
    """Return CIFAR-10's, but for the changes."""
    return DataFacts(
        **{
            "name": "cifar",
            "store": "cifar",
            "fingerprint": "f" * 64,
            "channels": 3,
            "image_size": 32,
            "n_train": 50_000,
            "n_test": 10_000,
            "flip": True,
            "max_distance": 50.0,
            "extractor": "patches-cnn",
            "extractor_fingerprint": "e" * 64,
        }
        | changes
    )


def cell(
    variant: str = "ncsnv2", seed: int = 0, data: DataFacts | None = None, **overrides: Any
) -> Cell:
    """Return a variant's cell under the default settings, but for the overrides."""
    settings = apply_overrides(Profile(), overrides)
    return resolve(settings, parse_variant(variant), data or facts(), seed)


def context(out: Path) -> Context:
    """Return where and how a small grid's jobs run."""
    return Context(
        out=out, data_root=out / "data", device="cpu", threads=1, compile=False, sampling_batch=4
    )


def whole_jobs(cells: Sequence[Cell]) -> list[CellJob]:
    """Return the jobs of cells that a machine without a queue runs."""
    return without_parts(grid_jobs(cells))


def part_jobs(cells: Sequence[Cell]) -> list[CellJob]:
    """Return the jobs that a queue can begin before the ones that they are parts of."""
    return [job for job in grid_jobs(cells) if job.part_of is not None]
