"""The registry of the paper's tables and figures: what each shows, needs and is made by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from ablations.engine.console import FractionReporter
from ablations.engine.frames import make_frame
from ablations.engine.study import Item, Run
from ablations.hype.dumps import open_dumps
from ablations.hype.score import hype_scores, hype_table, read_ratings
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts, open_dataset
from ablations.pipeline.jobs import InterpolateJob, NeighboursJob, ShownJob, shown_jobs
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.variants import NCSNV2
from ablations.reporting.artefacts import Artefact
from ablations.studies.ncsnv2.benchmark import run_benchmark
from ablations.studies.ncsnv2.collect import collect
from ablations.studies.ncsnv2.mixture import sample_mixture
from ablations.studies.ncsnv2.quoted import published_hyperparameters
from ablations.studies.ncsnv2.results import HYPERPARAMETER_COLUMNS, Results, empty_results
from ablations.studies.ncsnv2.sections.architectures import architecture_artefact
from ablations.studies.ncsnv2.sections.averages import average_artefacts
from ablations.studies.ncsnv2.sections.benchmark import benchmark_artefacts
from ablations.studies.ncsnv2.sections.colour_shift import shift_curves, shift_strips, shift_table
from ablations.studies.ncsnv2.sections.conditioning import conditioning_figure
from ablations.studies.ncsnv2.sections.curves import ema_artefact, group_artefact, loss_artefacts
from ablations.studies.ncsnv2.sections.generalisation import (
    interpolation_artefacts,
    neighbour_artefacts,
)
from ablations.studies.ncsnv2.sections.mixture import mixture_artefact
from ablations.studies.ncsnv2.sections.paper_tables import table_1, table_4, table_6
from ablations.studies.ncsnv2.sections.quality import distance_against_n, quality_table
from ablations.studies.ncsnv2.sections.recomputed import recomputed_table
from ablations.studies.ncsnv2.sections.samples import overview_artefact, sheet_artefacts
from ablations.studies.ncsnv2.sections.step_sizes import step_size_table
from ablations.studies.ncsnv2.sections.steps import steps_curve, steps_table


@dataclass(frozen=True, kw_only=True)
class GridRun(Run):
    """What items of this study are made from."""

    @property
    def facts(self) -> tuple[DataFacts, ...]:
        """The data sets of the cells."""
        return tuple(dict.fromkeys(cell.data for cell in self.units))

    @cached_property
    def results(self) -> Results:
        """What the grid in `out` has given so far; without a grid, the paper's settings alone."""
        if load_manifest(self.out) is not None:
            return collect(self.out)
        run = {"grid": "none", "budget": "none", "datasets": [], "complete": False}
        run |= {
            "software": {},
            "code": "",
            "codes": [],
            "outdated": "",
            "hardware": "",
            "n_cells": 0,
            "n_done": 0,
        }
        settings = make_frame(HYPERPARAMETER_COLUMNS, published_hyperparameters())
        return replace(empty_results(run), hyperparameters=settings)


def _shown(kind: type[ShownJob]) -> Callable[[Sequence[Cell], str], list[ShownJob]]:
    """Return what gives the jobs of a kind for NCSNv2, one cell of a data set: its first seed."""

    def jobs(cells: Sequence[Cell], snapshot: str) -> list[ShownJob]:
        chosen = [c for c in cells if c.variant == NCSNV2 and not c.row and c.seed == 0]
        return shown_jobs(kind, chosen, snapshot=snapshot)

    return jobs


def _mixtures(run: GridRun) -> list[Artefact]:
    assert run.context is not None
    artefacts = []
    for facts in run.facts:
        with FractionReporter() as progress:
            mixture = sample_mixture(
                facts,
                open_dataset(run.context, facts),
                run.context.store,
                device=run.context.device,
                run=run.sample,
                progress=progress,
            )
        artefacts.append(mixture_artefact(mixture))
    return artefacts


def _benchmarks(run: GridRun) -> list[Artefact]:
    assert run.context is not None
    artefacts = []
    for facts in run.facts:
        with FractionReporter() as progress:
            benchmark = run_benchmark(
                facts,
                open_dataset(run.context, facts),
                run.context.store,
                device=run.context.device,
                extractor_weights=run.context.extractor_weights,
                run=run.sample,
                progress=progress,
            )
        artefacts += benchmark_artefacts(benchmark)
    return artefacts


def _ema(run: GridRun, *, denoise: bool) -> list[Artefact]:
    results = run.results.ablation
    return [ema_artefact(results, denoise=denoise), shift_strips(results, denoise=denoise)]


def _colours(run: GridRun) -> list[Artefact]:
    return [
        make(run.results.ablation, denoise=denoise)
        for denoise in (True, False)
        for make in (shift_curves, shift_table, shift_strips)
    ]


def _human_evaluation(run: GridRun) -> list[Artefact]:
    """Table 5 from the ratings in OUT/hype-ratings, of the dumps of the ablation's rows."""
    folder, ratings = run.out / "samples", run.out / "hype-ratings"
    paths = sorted(path.parent for path in folder.glob("*/manifest.json"))
    dumps = [dump for path in paths for dump in open_dumps(path, decode=False)]
    models = set(run.results.ablation.cells["variant"])
    dumps = [dump for dump in dumps if dump.label["model"] in models]
    read = read_ratings([ratings] if ratings.is_dir() else [])
    return [Artefact(shown=hype_table(hype_scores(read, dumps)))]


def _steps(run: GridRun) -> list[Artefact]:
    table = steps_table(run.results)
    if table is None:
        raise ValueError(f"{run.out}: no variant has been sampled in two ways yet")
    curve = steps_curve(run.results, table)
    sizes = step_size_table(run.results)
    return [Artefact(shown=shown) for shown in (table, curve, sizes) if shown is not None]


def _qualities(run: GridRun) -> list[Artefact]:
    results = run.results.ablation
    pictures = [distance_against_n(results, denoise=denoise) for denoise in (True, False)]
    frame = results.extrapolations
    return [
        Artefact(shown=quality_table(results)),
        *(
            Artefact(shown=p, frames={p.name: frame[frame["denoise"] == denoise]})
            for p, denoise in zip(pictures, (True, False), strict=True)
        ),
    ]


def _interpolations(run: GridRun, *, snapshot: str) -> list[Artefact]:
    return interpolation_artefacts(run.results, snapshot=snapshot)


def _neighbours(run: GridRun, *, snapshot: str) -> list[Artefact]:
    return neighbour_artefacts(run.results, snapshot=snapshot)


def _sheets(
    run: GridRun, *, snapshot: str, variants: Collection[str] | None = None
) -> list[Artefact]:
    return sheet_artefacts(run.results.ablation, snapshot=snapshot, variants=variants)


def _of_results(make: Callable[[Results], Artefact]) -> Callable[[GridRun], list[Artefact]]:
    return lambda run: [make(run.results.ablation)]


def _numbered(*numbers: int) -> tuple[str, ...]:
    return tuple(f"fig{number}" for number in numbers)


#: The data set that a figure of one data set is of in the paper. Here all are of the grid's.
FIGURE_DATA = {
    **dict.fromkeys(("fig2", "fig3", "fig11", "fig16", "fig25"), "CIFAR-10"),
    **dict.fromkeys(("fig10", "fig12", "fig17", "fig20", "fig26"), "CelebA"),
    **dict.fromkeys(("fig18", "fig21", "fig27"), "LSUN church_outdoor"),
    **dict.fromkeys(("fig22", "fig28"), "LSUN bedroom"),
    **dict.fromkeys(("fig23", "fig29"), "LSUN tower"),
    **dict.fromkeys(("fig19", "fig24", "fig30"), "FFHQ"),
}

#: In the paper's order, tables first.
ITEMS = (
    Item(
        name="table1",
        shows="Inception score and distance, with and without denoising, beside the paper's models",
        needs="grid",
        make=_of_results(table_1),
    ),
    Item(
        name="table2",
        shows="the architectures of NCSN as built: layers, channels, resolution",
        needs="none",
        make=lambda run: [architecture_artefact(conditional=True)],
    ),
    Item(
        name="table3",
        shows="the architectures of NCSNv2 as built",
        needs="none",
        make=lambda run: [architecture_artefact(conditional=False)],
    ),
    Item(
        name="table4",
        shows="hyperparameters: published, by Techniques 2 and 4, and those of the grid in OUT",
        needs="none",
        make=lambda run: [table_4(run.results.ablation), Artefact(shown=recomputed_table())],
    ),
    Item(
        name="table5",
        shows="HYPE∞ of the grid's dumps from ratings in OUT/hype-ratings, the paper's rows beside",
        needs="grid",
        make=_human_evaluation,
    ),
    Item(
        name="table6",
        shows="training and sampling times, the paper's beside",
        needs="grid",
        make=_of_results(table_6),
    ),
    Item(
        name="fig2",
        shows="a mixture of Gaussians sampled with its exact score: σ₁ = 1 against Technique 1",
        needs="data",
        make=_mixtures,
    ),
    Item(
        name="fig3",
        shows="training loss of conditional normalisation against division by σ",
        needs="grid",
        make=_of_results(conditioning_figure),
    ),
    Item(
        name="fig4",
        shows="raw against averaged weights over training, with denoising, and sample strips",
        needs="grid",
        make=partial(_ema, denoise=True),
    ),
    Item(
        name="fig5",
        shows="groups of techniques over training, with denoising",
        needs="grid",
        make=_of_results(partial(group_artefact, denoise=True)),
    ),
    Item(
        name="fig6",
        shows="interpolations between samples",
        needs="grid",
        more=_shown(InterpolateJob),
        make=_interpolations,
        snapshot="selected",
    ),
    Item(
        name="fig7",
        shows="sheets of uncurated samples, the same indices for every variant",
        needs="grid",
        make=_sheets,
        aliases=_numbered(1, 10),
        snapshot="selected",
    ),
    Item(
        name="fig8",
        shows="fig4 without denoising",
        needs="grid",
        make=partial(_ema, denoise=False),
    ),
    Item(
        name="fig9",
        shows="fig5 without denoising",
        needs="grid",
        make=_of_results(partial(group_artefact, denoise=False)),
    ),
    Item(
        name="fig11",
        shows="the colour shift over training as a curve, a table and sample strips",
        needs="grid",
        make=_colours,
        aliases=_numbered(12),
    ),
    Item(
        name="fig13",
        shows="samples of groups of techniques side by side, with denoising",
        needs="grid",
        make=_of_results(partial(overview_artefact, denoise=True)),
    ),
    Item(
        name="fig14",
        shows="fig13 without denoising",
        needs="grid",
        make=_of_results(partial(overview_artefact, denoise=False)),
    ),
    Item(
        name="fig15",
        shows="training and test loss of NCSNv2",
        needs="grid",
        make=lambda run: loss_artefacts(run.results.ablation),
    ),
    Item(
        name="fig16",
        shows="nearest training images of samples and of held-out images, and their distances",
        needs="grid",
        more=_shown(NeighboursJob),
        make=_neighbours,
        aliases=_numbered(17, 18, 19),
        snapshot="last",
    ),
    Item(
        name="fig20",
        shows="fig6 at the last iteration, as the paper's App. C.5 has it",
        needs="grid",
        more=_shown(InterpolateJob),
        make=_interpolations,
        aliases=_numbered(21, 22, 23, 24),
        snapshot="last",
    ),
    Item(
        name="fig25",
        shows="the sheets of NCSNv2 at the last iteration, as the paper's App. C.5 has them",
        needs="grid",
        make=partial(_sheets, variants=[NCSNV2.name]),
        aliases=_numbered(26, 27, 28, 29, 30),
        snapshot="last",
    ),
    Item(
        name="quality",
        shows="not in the paper: KID, precision and recall, and what n does to the distance",
        needs="grid",
        make=_qualities,
    ),
    Item(
        name="steps",
        shows="not in the paper: distance against score evaluations, L×T, consistent sampling",
        needs="grid",
        grid="steps",
        make=_steps,
    ),
    Item(
        name="sampler-benchmark",
        shows="not in the paper: every sampler with a mixture's exact score, at equal evaluations",
        needs="data",
        make=_benchmarks,
    ),
    Item(
        name="ema",
        shows="not in the paper: distance, stability and colour shift over the average's width",
        needs="grid",
        grid="ema",
        make=lambda run: average_artefacts(run.results),
    ),
)
