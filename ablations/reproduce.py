"""``python -m ablations.reproduce``: the paper's tables and figures, each by its name."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ablations import launch
from ablations.artefacts import Artefact, save_artefacts
from ablations.cells import DataFacts
from ablations.collect import collect, published_hyperparameters
from ablations.colour_shift import shift_curves, shift_strips, shift_table
from ablations.conditioning_figure import conditioning_figure
from ablations.grids import load_grid
from ablations.jobs import Context
from ablations.manifest import load_manifest
from ablations.mixture import sample_mixture
from ablations.mixture_figure import mixture_artefact
from ablations.paper_figures import (
    ema_artefact,
    group_artefact,
    loss_artefact,
    overview_artefact,
    sheet_artefacts,
)
from ablations.paper_tables import table_1, table_4, table_6
from ablations.presentation import write_file
from ablations.results import HYPERPARAMETER_COLUMNS, Results, empty_results, make_frame
from scorekit.presets import TABLE_4

_LINE_EVERY_S = 30


@dataclass(frozen=True, kw_only=True)
class Run:
    """What items are made from: an output folder and, where one needs them, the data sets.

    With `sample` False, nothing is computed that is not there.
    """

    out: Path
    facts: tuple[DataFacts, ...] = ()
    context: Context | None = None
    sample: bool = True

    @cached_property
    def results(self) -> Results:
        """What the grid in `out` has given so far; without a grid, the paper's settings alone."""
        if load_manifest(self.out) is not None:
            return collect(self.out)
        run = {"grid": "none", "budget": "none", "n_seeds": 0, "datasets": [], "complete": False}
        run |= {"software": {}, "hardware": "", "n_cells": 0, "n_done": 0}
        settings = make_frame(HYPERPARAMETER_COLUMNS, published_hyperparameters())
        return replace(empty_results(run), hyperparameters=settings)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure of the paper: what it shows, what it takes, and how it is made.

    `needs` is "grid" (the ablation is run first), "data" (the data sets are prepared) or "none".
    `aliases` are figures of the paper that this one shows as well.
    """

    name: str
    shows: str
    needs: Literal["grid", "data", "none"]
    make: Callable[[Run], list[Artefact]]
    aliases: tuple[str, ...] = ()


def _mixtures(run: Run) -> list[Artefact]:
    assert run.context is not None
    artefacts = []
    for facts in run.facts:
        with _Progress() as progress:
            mixture = sample_mixture(
                facts,
                run.context.dataset(facts),
                run.context.store,
                device=run.context.device,
                run=run.sample,
                progress=progress,
            )
        artefacts.append(mixture_artefact(mixture))
    return artefacts


def _ema(run: Run, *, denoise: bool) -> list[Artefact]:
    results = run.results
    return [ema_artefact(results, denoise=denoise), shift_strips(results, denoise=denoise)]


def _colours(run: Run) -> list[Artefact]:
    return [
        make(run.results, denoise=denoise)
        for denoise in (True, False)
        for make in (shift_curves, shift_table, shift_strips)
    ]


def _of_results(make: Callable[[Results], Artefact]) -> Callable[[Run], list[Artefact]]:
    return lambda run: [make(run.results)]


def _numbered(*numbers: int) -> tuple[str, ...]:
    return tuple(f"fig{number}" for number in numbers)


#: In the paper's order, tables first.
ITEMS = (
    Item(
        name="table1",
        shows="Inception score and distance, with and without denoising, beside the paper's models",
        needs="grid",
        make=_of_results(table_1),
    ),
    Item(
        name="table4",
        shows="hyperparameters: published, by Techniques 2 and 4, and those of the grid in OUT",
        needs="none",
        make=_of_results(table_4),
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
        name="fig7",
        shows="sheets of uncurated samples, the same indices for every variant",
        needs="grid",
        make=lambda run: sheet_artefacts(run.results),
        aliases=_numbered(1, 10, 25, 26, 27, 28, 29, 30),
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
        make=_of_results(loss_artefact),
    ),
)


def find_items(names: Sequence[str]) -> list[Item]:
    """Return the items of these names, each once; ValueError lists those known."""
    by_name = {name: item for item in ITEMS for name in (item.name, *item.aliases)}
    found: dict[str, Item] = {}
    for name in names:
        if name != "all" and name not in by_name:
            raise ValueError(f"{name!r} is unknown; known: {', '.join(['all', *by_name])}")
        for item in ITEMS if name == "all" else [by_name[name]]:
            found[item.name] = item
    return list(found.values())


def describe_items() -> str:
    """Return what ``--list`` prints: every name, and how to give the paper's data sets."""
    lines = ["name      needs  what"]
    for item in ITEMS:
        also = f" (also {', '.join(item.aliases)})" if item.aliases else ""
        lines.append(f"{item.name:<9} {item.needs:<6} {item.shows}{also}")
    lines += [
        "all              every one of them",
        "",
        "grid: runs what is missing of --grid paper first; data: prepares --datasets only.",
        "The paper's data sets, each with the settings of Table 4:",
    ]
    lines += [
        f"  {row.dataset:<14} --datasets imagefolder:PATH --set image_size={row.image_size} "
        f"--set preset={row.dataset}"
        for row in TABLE_4
        if row.model == "NCSNv2"
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (an item or a job failed), 2 (bad input) or 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    parser = argparse.ArgumentParser(
        usage="python -m ablations.reproduce NAME... [--no-run] [flags of ablations.launch]",
        description="Write tables and figures of Song & Ermon 2020 into OUT/reproduce/NAME: "
        "pictures, their data, and captions with the conditions. What the grid lacks is run first.",
        epilog="Names come first; --list prints them. Other flags go to ablations.launch.",
        allow_abbrev=False,
    )
    parser.add_argument("--list", action="store_true", help="print every name and what it needs")
    parser.add_argument(
        "--no-run", action="store_true", help="compute nothing; what is missing is said"
    )
    own, flags = parser.parse_known_args(argv[len(names) :])
    if own.list:
        print(describe_items())
        return 0
    if not names:
        parser.error("no NAME given; --list prints them")
    args = launch.parse_arguments(flags)
    try:
        items = find_items(names)
        if args.dry_run or args.status:
            return launch.main(flags)
        run = _prepare(items, args, sample=not own.no_run)
        code = 0
        if run.sample and any(item.needs == "grid" for item in items):
            code = launch.main(flags)
            if code not in (0, 1):
                return code
        # Every item, also behind one that fails.
        return max([code, *[_make(item, run) for item in items]])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _prepare(items: list[Item], args: argparse.Namespace, *, sample: bool) -> Run:
    """Check the command line and find what the items need; ValueError or OSError for bad input."""
    if args.threads is not None:
        torch.set_num_threads(max(1, args.threads))
    out = (args.out or Path("runs") / load_grid(args.grid).name).resolve()
    if all(item.needs == "none" for item in items):
        return Run(out=out, sample=sample)
    if sample:
        plan = launch.make_plan(args)
        cells, context = plan.cells, plan.context
    else:
        manifest = load_manifest(out)
        if manifest is None:
            raise ValueError(f"--no-run: {out} holds no grid (no grid.json); give the --out of one")
        cells = manifest.cells
        data_root = (out / manifest.data_root).resolve()
        # Only paths matter for reading.
        context = Context(
            out=out, data_root=data_root, device="cpu", threads=1, compile=False, sampling_batch=1
        )
    return Run(
        out=out,
        facts=tuple(dict.fromkeys(cell.data for cell in cells)),
        context=context,
        sample=sample,
    )


def _make(item: Item, run: Run) -> int:
    """Make an item and say in one line where it is, or what went wrong: 0 or 1."""
    directory = run.out / "reproduce" / item.name
    failure = directory / "failure.txt"
    try:
        paths = save_artefacts(item.make(run), directory)
        failure.unlink(missing_ok=True)
    except Exception as error:  # whatever it is, the other items do not depend on it
        write_file(failure, traceback.format_exc())
        reason = (str(error).splitlines() or [""])[0]
        where = os.path.relpath(failure)
        print(
            f"{item.name}: FAILED: {type(error).__name__}: {reason} (see {where})", file=sys.stderr
        )
        return 1
    print(f"{item.name}: {os.path.relpath(directory)} ({len(paths)} files)", flush=True)
    return 0


class _Progress:
    """A bar on a terminal, and elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=100.0,
            disable=not self._terminal,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
        )
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, fraction: float, text: str) -> None:
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(100 * fraction - self._bar.n)
        elif (now := time.monotonic()) - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            print(f"[{now - self._began:5.0f} s] {100 * fraction:.0f} %; {text}", flush=True)


if __name__ == "__main__":
    # A terminated run stops its local jobs as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
