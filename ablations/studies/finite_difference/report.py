"""The report of the grid ``finite-difference``: its tables and pictures on one page."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

from ablations.reporting.page import Section, Words, write_page
from ablations.reporting.pictures import own_style
from ablations.reporting.wording import joined
from ablations.studies.finite_difference.budgets import BUDGETS
from ablations.studies.finite_difference.exhibits import EXHIBITS
from ablations.studies.finite_difference.results import TrialResults, collect_trials
from ablations.studies.finite_difference.sections.comparisons import comparison_table
from scorekit.runtime.machine import cpu_name


@own_style()
def build_finite_difference_report(out: Path) -> Path:
    """Write ``out``/report from the files of the trials alone; the path of the page.

    Raises ValueError for a folder without such a grid, OSError when it cannot be written to.
    """
    results = collect_trials(out)
    return write_page(out / "report", sections(results), _words(results))


_TITLES = {
    "toy": "The 2-D toy",
    "loss": "Loss against wall time",
    "distance": "Samples over training",
    "flow": "Flows",
    "implicit": "Implicit encoders",
    "epsilon": "Sensitivity to ε",
    "cost": "Time and memory",
}


def sections(results: TrialResults) -> list[Section]:
    """What the page holds, in its order; a part that was not asked for is left out."""
    there = {trial.part for trial in results.plan.units}
    there |= {skipped["part"] for skipped in results.plan.skipped}
    return [
        Section(
            id=part,
            title=title,
            blocks=[
                *(b for e in EXHIBITS if e.part == part for b in e.blocks(results)),
                comparison_table(results, part),
            ],
        )
        for part, title in _TITLES.items()
        if part in there
    ]


def _words(results: TrialResults) -> Words:
    plan, trials = results.plan, results.trials
    counts = Counter(entry.state for entry in trials)
    done = f"{counts['done']} of {len(trials)} trials done"
    description = BUDGETS[plan.budget].description
    problems = [
        f"{entry.trial.name}: {entry.state} ({entry.message})"
        for entry in trials
        if entry.state in ("failed", "diverged")
    ]
    problems += [f"{skipped['name']}: skipped ({skipped['reason']})" for skipped in plan.skipped]
    data = {"toy": "2-D toy", "gradient": "photographs"}
    data |= dict.fromkeys(("loss", "distance", "deep"), "digits")
    named = [
        data.get(e.trial.kind) or e.trial.settings.get("dataset") or e.trial.settings.get("table")
        for e in trials
    ]
    conditions = [e.result["conditions"] for e in trials if e.result is not None]
    return Words(
        title=f"Finite-difference score matching, budget {plan.budget}",
        eyebrow="Experiments report",
        heading="Finite-difference score matching beside what it approximates",
        lead="Sliced and denoising score matching differentiate a model twice; their "
        "finite-difference forms evaluate it at two or three nearby points instead. What that "
        "saves and what it costs, as in the authors’ response to their reviewers, with paired "
        "seeds and intervals. Numbers of the response stand beside ours, marked as quoted.",
        budget=plan.budget,
        budget_note=f"{description[0].upper()}{description[1:]}. These numbers compare methods "
        "under these conditions; they are not the source's and do not stand for them.",
        running="" if counts["done"] == len(trials) else f"Not complete: {done}.",
        running_note="A row without a number says why; the same command goes on.",
        problems_title="Without a full result:",
        problems=problems,
        facts=[
            ("Grid", plan.grid),
            ("Parts", ", ".join(dict.fromkeys(trial.part for trial in plan.units))),
            ("Data", ", ".join(dict.fromkeys(name for name in named if name)) or "—"),
            ("State", done),
            ("Settings", joined(f"{k}={v}" for k, v in plan.overrides.items()) or "the budget’s"),
            ("Hardware", joined(c["device"] for c in conditions) or cpu_name()),
            (
                "Software",
                f"torch {torch.__version__}, "
                + ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy")),
            ),
        ],
        footer="T. Pang et al., “Efficient Learning of Generative Models via Finite-Difference "
        "Score Matching”, 2020, and the authors’ response to its reviewers. Times and ratios hold "
        "for the hardware they were measured on.",
    )
