"""``python -m ablations.reproduce``: the paper's tables and figures, each by its name."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from ablations import launch
from ablations.command_line import (
    Plan,
    load_cells,
    make_plan,
    output_folder,
    parse_arguments,
)
from ablations.engine.console import make_reporter
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.lock import launcher_lock
from ablations.engine.surroundings import use_any_terminal
from ablations.executors.inline import run_inline
from ablations.executors.outcome import Outcome
from ablations.pipeline.cell import Cell
from ablations.pipeline.jobs import job_is_done, more_jobs
from ablations.reporting.artefacts import save_artefacts
from ablations.reporting.pictures import own_style
from ablations.studies.ncsnv2.reproductions import FIGURE_DATA, ITEMS, Item, Run
from ablations.studies.ncsnv2.variants import NCSNV2
from scorekit.files import write_file
from scorekit.techniques.table_4 import TABLE_4

if TYPE_CHECKING:
    pass


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
        also = f" (also {', '.join(map(_with_data, item.aliases))})" if item.aliases else ""
        of = f" [{FIGURE_DATA[item.name]}]" if item.name in FIGURE_DATA else ""
        lines.append(f"{item.name:<9} {item.needs:<6} {item.shows}{of}{also}")
    lines += [
        "all              every one of them",
        "",
        "grid: runs what is missing of --grid paper first; data: prepares --datasets only.",
        "In brackets: the data set that a figure is of in the paper. Here every figure is of",
        "the data sets that --datasets names.",
        "The paper's data sets, each with the settings of Table 4:",
    ]
    lines += [
        f"  {row.dataset:<14} --datasets {row.dataset}:PATH --set preset={row.dataset}"
        for row in TABLE_4
        if row.model == "NCSNv2"
    ]
    return "\n".join(lines)


def _with_data(name: str) -> str:
    return f"{name} [{FIGURE_DATA[name]}]" if name in FIGURE_DATA else name


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
    parser.add_argument(
        "--snapshot",
        choices=["last", "selected"],
        help="the end of training or the snapshot with the smallest distance, for figures that can "
        "show either (default: as in the paper, whose Figs. 16 to 30 are of the last iteration)",
    )
    own, flags = parser.parse_known_args(argv[len(names) :])
    if own.list:
        print(describe_items())
        return 0
    if not names:
        parser.error("no NAME given; --list prints them")
    args = parse_arguments(flags)
    try:
        items = find_items(names)
        if args.dry_run or args.status:
            return launch.main(flags)
        run = replace(_prepare(items, args, sample=not own.no_run), snapshot=own.snapshot)
        code = 0
        if run.sample and any(item.needs == "grid" for item in items):
            code = _run_grid(items, flags, own.snapshot)
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


def _run_grid(items: list[Item], flags: Sequence[str], snapshot: str | None) -> int:
    """Run what the items need of the grid and besides it; return the launcher's exit code."""
    codes = [launch.main(flags)]
    for rows in dict.fromkeys(item.rows for item in items if item.rows):
        codes.append(launch.main([*flags, "--rows", rows]))
    if max(codes) > 1:
        return max(codes)
    plan = make_plan(parse_arguments(flags))
    # One cell of a data set: pictures show the first seed.
    cells = [c for c in plan.cells if c.variant == NCSNV2 and not c.row and c.seed == 0]
    wanted = ((item.more, snapshot or item.snapshot) for item in items)
    for kind, which in dict.fromkeys(wanted):
        if kind is None or which is None:
            continue
        for name, reason in run_more(plan, kind, cells, snapshot=which).items():
            print(f"{name}: FAILED: {reason}", file=sys.stderr)
            codes.append(1)
    return max(codes)


def _prepare(items: list[Item], args: argparse.Namespace, *, sample: bool) -> Run:
    """Check the command line and find what the items need; ValueError or OSError for bad input."""
    if args.threads is not None:
        torch.set_num_threads(max(1, args.threads))
    out = output_folder(args)
    if all(item.needs == "none" for item in items):
        return Run(out=out, sample=sample)
    if sample:
        plan = make_plan(args)
        cells, context = plan.cells, plan.context
    else:
        cells, context = load_cells(args)
    return Run(
        out=out,
        facts=tuple(dict.fromkeys(cell.data for cell in cells)),
        context=context,
        sample=sample,
    )


@own_style()
def _make(item: Item, run: Run) -> int:
    """Make an item and say in one line where it is, or what went wrong: 0 or 1."""
    directory = run.out / "reproduce" / item.name
    failure = directory / "failure.txt"
    try:
        paths = save_artefacts(item.artefacts(run), directory)
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


if __name__ == "__main__":
    use_any_terminal()
    interrupt_on_sigterm()
    sys.exit(main())


def run_more(plan: Plan, kind: str, cells: list[Cell], *, snapshot: str) -> dict[str, str]:
    """Run jobs of a kind that grids have not, here, for evaluated cells; return what failed, why.

    ``kind`` is "interpolate" or "neighbours", ``snapshot`` "last" or "selected". Raises ValueError
    where OUT is in use.
    """
    jobs = more_jobs(kind, cells, snapshot=snapshot)
    jobs = [job for job in jobs if not job_is_done(job, plan.context)]
    outcome = Outcome()
    if jobs:
        with launcher_lock(plan.context.out), make_reporter(jobs, plan.context) as reporter:
            run_inline(jobs, plan.context, reporter, outcome)
    return outcome.failed
