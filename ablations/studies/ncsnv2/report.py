"""The report of a grid from NCSN to NCSNv2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablations.reporting.page import Collapsed, Section, Words, write_page
from ablations.reporting.pictures import Picture, own_style
from ablations.reporting.wording import is_papers, joined
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.comparisons import effects_table, finding, seeds_table
from ablations.studies.ncsnv2.sections.curves import distance_curves, ema_curves, loss_curves
from ablations.studies.ncsnv2.sections.quality import distance_against_n, quality_table
from ablations.studies.ncsnv2.sections.samples import grid_keys, sample_grid, sample_overview
from ablations.studies.ncsnv2.sections.settings_and_times import (
    held_out_table,
    hyperparameter_table,
    quoted_scores_table,
    settings_table,
    timing_table,
)
from ablations.studies.ncsnv2.sections.step_sizes import step_size_table
from ablations.studies.ncsnv2.sections.steps import steps_curve, steps_table
from ablations.studies.ncsnv2.sections.style import seeds_text
from ablations.studies.ncsnv2.settings import BUDGETS

NOT_THE_PAPERS = (
    "These numbers compare the variants under these conditions; they are not the paper's numbers "
    "and do not stand for them."
)


_LEAD = (
    "The techniques of Song & Ermon (2020) are put on NCSN one group after another: averaged "
    "weights (5), noise levels and sampler settings (1, 2, 4), and noise conditioning (3). NCSNv2 "
    "has them all. Each variant is trained and sampled, and its samples are compared with real "
    "images."
)


def sections(results: Results) -> list[Section]:
    """What the page holds, in its order: a new table or figure is a line here."""
    both = (True, False)
    steps = steps_table(results)
    curve = None if steps is None else steps_curve(results, steps)
    sizes = None if steps is None else step_size_table(results)
    everything, results = results, results.ablation
    return [
        Section(
            id="ablation",
            title="Ablation",
            blocks=[
                ablation_table(results),
                effects_table(results),
                quoted_scores_table(results),
            ],
            only_files=[seeds_table(results)],
        ),
        Section(
            id="samples",
            title="Samples",
            blocks=_sample_pictures(results),
            # One of the two settings is enough inside the page: they hardly differ to the eye.
            only_files=_sample_grids(results, denoise=False),
        ),
        Section(
            id="quality",
            title="Other metrics",
            blocks=[
                quality_table(results),
                *(distance_against_n(results, denoise=denoise) for denoise in both),
            ],
        ),
        Section(
            id="steps",
            title="Ways of sampling",
            blocks=[block for block in (steps, curve, sizes) if block is not None],
        ),
        Section(
            id="curves",
            title="Over training",
            blocks=(distance_curves(results, denoise=denoise) for denoise in both),
        ),
        Section(
            id="ema",
            title="Averaged weights",
            blocks=(ema_curves(results, denoise=denoise) for denoise in both),
        ),
        Section(id="loss", title="Loss", blocks=[loss_curves(results), held_out_table(results)]),
        Section(
            id="hyperparameters",
            title="Hyperparameters",
            blocks=[
                hyperparameter_table(results),
                Collapsed(
                    summary="Every setting of every row", blocks=[settings_table(everything)]
                ),
            ],
        ),
        Section(id="timings", title="Time and memory", blocks=[timing_table(results)]),
    ]


@own_style()
def build_report(results: Results, directory: Path | str) -> Path:
    """Write tables/, figures/ and index.html below `directory`; the path of the page.

    The page is written last, so one that is there is whole. Raises OSError when the directory
    cannot be written to.
    """
    return write_page(Path(directory), sections(results), _words(results))


def _sample_pictures(results: Results) -> Iterator[Picture | Collapsed]:
    for denoise in (True, False):
        yield sample_overview(results, denoise=denoise)
    count = sum(denoise for _, _, denoise in grid_keys(results))
    if count:
        yield Collapsed(
            summary=f"Larger grids with the denoising step, one per variant ({count})",
            note="Those without the denoising step are in figures/.",
            blocks=_sample_grids(results, denoise=True),
        )


def _sample_grids(results: Results, *, denoise: bool) -> Iterator[Picture]:
    for dataset, variant, denoised in grid_keys(results):
        if denoised == denoise:
            yield sample_grid(results, dataset, variant, denoise=denoise)


def _words(results: Results) -> Words:
    run, datasets = results.run, results.run["datasets"]
    done = f"{run['n_done']} of {run['n_cells']} cells done"
    problems = _problems(results)
    return Words(
        title=f"NCSN to NCSNv2: {', '.join(datasets)}, budget {run['budget']}",
        eyebrow="Ablation report",
        heading="From NCSN to NCSNv2, technique by technique",
        lead=f"{finding(results.ablation)} {_LEAD}".strip(),
        budget=str(run["budget"]),
        budget_note=budget_note(run),
        running="" if run["complete"] else f"Still running: {done}.",
        running_note=_counts(results)
        + "A row without a number says why; build the report again for what has come since.",
        problems_title=f"{len(problems)} {'cell' if len(problems) == 1 else 'cells'} without a "
        "full result:",
        problems=problems,
        warning=_other_code(run),
        facts=[
            ("Grid", str(run["grid"])),
            ("Data set" if len(datasets) == 1 else "Data sets", ", ".join(datasets) or "—"),
            ("Seeds", seeds_text(results)),
            ("State", done),
            ("Hardware", str(run["hardware"])),
            ("Software", ", ".join(f"{name} {v}" for name, v in run["software"].items())),
            ("Code", _codes(run)),
        ],
        footer="Y. Song and S. Ermon, “Improved Techniques for Training Score-Based Generative "
        "Models”, 2020. A Fréchet distance in one feature space cannot be compared with one in "
        "another, nor one at a given n with one at another n.",
    )


def _codes(run: Mapping[str, Any]) -> str:
    """Which versions of the code made the results, all of them named, and which made the page."""
    codes, present = run["codes"], run["code"]
    if len(codes) > 1:
        made = f"the results come from {len(codes)} versions of the code: {', '.join(codes)}"
    else:
        made = codes[0] if codes else "—"
    return made if set(codes) <= {present} else f"{made}; this page is by another, {present}"


def _other_code(run: Mapping[str, Any]) -> str:
    """A warning where results are older than their own code, else nothing."""
    if not run["outdated"]:
        return ""
    text = str(run["outdated"])
    return f"{text[0].upper()}{text[1:]}, which may give others: --rerun changed makes them again."


def budget_note(run: Mapping[str, Any]) -> str:
    """What a page says of a budget: what it is, and that its numbers are not the paper's."""
    label = str(run["budget"])
    name, changed = label.partition(",")[0], ", changed: " in label
    if name not in BUDGETS:
        return NOT_THE_PAPERS
    description = BUDGETS[name].description
    note = f"{description[0].upper()}{description[1:]}{', but for what is changed' * changed}."
    return note if is_papers(run) else f"{note} {NOT_THE_PAPERS}"


def _counts(results: Results) -> str:
    """How many cells are in which state: "3 done, 1 failed. "."""
    counts = results.cells.drop_duplicates(["dataset", "variant", "seed"])["status"].value_counts()
    order = ("done", "running", "planned", "failed", "diverged")
    text = joined(f"{counts[status]} {status}" for status in order if status in counts)
    return f"{text}. " if text else ""


def _problems(results: Results) -> list[str]:
    cells = results.cells[results.cells["status"].isin(["failed", "diverged"])]
    return [
        f"{cell['dataset']}, {cell['variant']}, seed {cell['seed']}: {cell['status']}"
        + (f" ({cell['message']})" if isinstance(cell["message"], str) else "")
        for cell in cells.to_dict("records")
    ]
