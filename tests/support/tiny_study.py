"""A study of its own, by the public seams alone: how the mean of n draws approaches its limit.

Draws are made in blocks, one job for each seed; a summary needs all of them and is timed, so it
runs alone. It is the example of the guide "Add a study".
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.context import Context
from ablations.engine.job import Job, Work
from ablations.engine.manifest import Manifest, ManifestFile
from ablations.engine.settings import Budget, apply_overrides, parse_overrides
from ablations.engine.stages import Stage
from ablations.engine.study import Request, Resolved, Run, Study
from ablations.reporting.page import Section, Words, write_page
from ablations.reporting.table import Table
from scorekit.runtime.interruption import Stopped


@dataclass(frozen=True)
class Settings:
    """What --set takes."""

    n_draws: int = 1000
    n_blocks: int = 4


@dataclass(frozen=True)
class Draw:
    """A unit: the draws of one seed."""

    name: str
    seed: int
    n_draws: int
    n_blocks: int

    @property
    def stage(self) -> Stage:
        """The draws; their settings are all that they depend on."""
        return Stage("draw", {k: v for k, v in asdict(self).items() if k != "name"})


@dataclass(frozen=True, kw_only=True)
class DrawJob(Job):
    """Draws block by block; a killed one goes on behind its last block."""

    kind = "draw"
    draw: Draw

    @property
    def name(self) -> str:
        return f"draw-{self.draw.stage.digest}"

    @property
    def title(self) -> str:
        return f"draws of {self.draw.name}"

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return context.store.result(self.draw.stage) is not None

    def run(self, work: Work) -> None:
        def execute(folder: Path) -> tuple[dict[str, Any], list[Path]]:
            for block in range(self.draw.n_blocks):
                if work.stop():
                    raise Stopped("between two blocks")
                path = folder / f"block-{block}.npy"
                if not path.exists():
                    generator = np.random.default_rng([self.draw.seed, block])
                    with open(folder / ".block.tmp", "wb") as file:
                        np.save(file, generator.normal(size=self.draw.n_draws))
                    os.replace(folder / ".block.tmp", path)
                work.progress((block + 1) / self.draw.n_blocks, f"block {block}")
            blocks = sorted(folder.glob("block-*.npy"))
            return {"mean": float(np.mean([np.load(path) for path in blocks]))}, blocks

        work.context.store.run(self.draw.stage, execute)


@dataclass(frozen=True, kw_only=True)
class SummaryJob(Job):
    """The spread over seeds."""

    kind = "summary"
    draws: tuple[Draw, ...]

    @property
    def stage(self) -> Stage:
        return Stage("summary", {}, tuple(draw.stage for draw in self.draws))

    @property
    def name(self) -> str:
        return f"summary-{self.stage.digest}"

    @property
    def title(self) -> str:
        return f"summary of {len(self.draws)} seeds"

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return context.store.result(self.stage) is not None

    def run(self, work: Work) -> None:
        def execute(folder: Path) -> tuple[dict[str, Any], list[Path]]:
            results = [work.context.store.result(draw.stage) for draw in self.draws]
            means = [result["mean"] for result in results if result is not None]
            assert len(means) == len(self.draws), "it needs every draw"
            return {"spread": float(np.std(means))}, []

        work.context.store.run(self.stage, execute)


def jobs(draws: Sequence[Draw]) -> list[Job]:
    """Return the jobs of units, those first that others need."""
    made = [DrawJob(draw=draw) for draw in draws]
    needs = tuple(job.name for job in made)
    return [*made, SummaryJob(draws=tuple(draws), needs=needs, alone=True)]


def resolve(request: Request) -> Resolved:
    """Return what a command line asks for."""
    overrides = parse_overrides(request.args.set, Settings)
    settings = apply_overrides(BUDGET.settings, overrides)
    draws = [
        Draw(f"draws/seed{seed}", seed, settings.n_draws, settings.n_blocks)
        for seed in range(request.args.seeds or 2)
    ]
    manifest = Manifest(
        grid="draws", budget="quick", overrides=overrides, data_root="data", units=draws
    )
    if request.existing is not None:
        manifest = FILE.merged(request.existing, manifest, request.out)
    context = Context(
        out=request.out,
        data_root=request.data_root,
        device=request.device,
        threads=request.threads,
        compile=False,
        sampling_batch=1,
    )
    return Resolved(manifest=manifest, units=draws, context=context)


def report(out: Path) -> Path:
    """Write the page from files alone."""
    manifest = FILE.load(out)
    assert manifest is not None
    store = Context(
        out=out, data_root=out, device="cpu", threads=1, compile=False, sampling_batch=1
    ).store
    found = [(draw.name, store.result(draw.stage) or {}) for draw in manifest.units]
    raw = pd.DataFrame([{"draws": name, "mean": result.get("mean")} for name, result in found])
    table = Table(
        name="means",
        title="Means",
        caption="Of every seed.",
        raw=raw,
        display=raw.astype("string"),
        kinds=("ours",) * len(raw),
        numeric=("mean",),
    )
    words = Words(
        title="Draws",
        eyebrow="Report",
        heading="Means of draws",
        lead="How the mean of n draws approaches its limit.",
        budget=manifest.budget,
        budget_note=BUDGET.description,
        facts=[("Seeds", str(len(found)))],
        footer="An example.",
    )
    return write_page(out / "report", [Section(id="means", title="Means", blocks=[table])], words)


FILE = ManifestFile(
    name="draws.json",
    version=1,
    key="draws",
    to_json=asdict,
    from_json=lambda record: Draw(**record),
    grid="draws",
)
BUDGET = Budget(name="quick", description="an instant", settings=Settings(), datasets=())
STUDY = Study(
    name="draws",
    title="Means of draws",
    grids={"draws": "the mean of n draws, by seed"},
    units="draws",
    settings=Settings,
    budgets={"quick": BUDGET},
    file=FILE,
    foreign=("datasets", "reference", "inception_weights", "extractor"),
    grid_name=lambda args: "draws",
    resolve=resolve,
    select=lambda draws, text: [draw for draw in draws if draw.name == text],
    jobs=jobs,
    budget_label=lambda manifest: manifest.budget,
    describe=lambda resolved, jobs: [job.title for job in jobs],
    report=report,
    exhibits=lambda: ((), Run),
)
