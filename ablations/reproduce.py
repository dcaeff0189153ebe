"""``python -m ablations.reproduce``: the tables and figures of the papers, each by its name."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import takewhile

import torch

from ablations import launch
from ablations.command_line import Plan, load_units, make_plan, output_folder, parse_arguments
from ablations.engine.console import make_reporter
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.job import Job
from ablations.engine.lock import launcher_lock
from ablations.engine.study import Item, Run, Study
from ablations.engine.surroundings import use_any_terminal
from ablations.executors.inline import run_inline
from ablations.executors.outcome import Outcome
from ablations.reporting.artefacts import save_artefacts
from ablations.reporting.pictures import own_style
from ablations.studies import all_studies
from ablations.studies.ncsnv2.reproductions import FIGURE_DATA
from scorekit.files import CorruptFile, write_file
from scorekit.techniques.table_4 import TABLE_4


def find_items(names: Sequence[str]) -> tuple[Study, list[Item]]:
    """Return the items of these names, each once, and the study that has them.

    "all" is every item of the default study. ValueError lists those known, and says which are not
    of one study.
    """
    places = {
        name: (study, item)
        for study in all_studies()
        for item in study.exhibits()[0]
        for name in (item.name, *item.aliases)
    }
    default = all_studies()[0]
    studies: dict[str, Study] = {}
    found: dict[str, Item] = {}
    for name in names:
        if name != "all" and name not in places:
            raise ValueError(f"{name!r} is unknown; known: {', '.join(['all', *places])}")
        study, item = (default, None) if name == "all" else places[name]
        studies[study.name] = study
        for each in default.exhibits()[0] if item is None else [item]:
            found[each.name] = each
    if len(studies) > 1:
        raise ValueError(
            f"{', '.join(names)} are of the studies {' and '.join(studies)}, which have folders of "
            "their own; give a command for each"
        )
    return next(iter(studies.values())), list(found.values())


def describe_items() -> str:
    """Return what ``--list`` prints: every name, and how to give the paper's data sets."""
    lines = []
    for study in all_studies():
        lines += [study.title, "name              needs  what"]
        for item in study.exhibits()[0]:
            also = f" (also {', '.join(map(_with_data, item.aliases))})" if item.aliases else ""
            of = f" [{FIGURE_DATA[item.name]}]" if item.name in FIGURE_DATA else ""
            lines.append(f"{item.name:<17} {item.needs:<6} {item.shows}{of}{also}")
        lines.append("")
    lines += [
        "all                      every one of the first study",
        "",
        "grid: runs what is missing of the grid first; data: prepares --datasets only.",
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
        description="Write tables and figures of the papers into OUT/reproduce/NAME: pictures, "
        "their data, and captions with the conditions. What the grid lacks is run first.",
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
    try:
        study, items = find_items(names)
        flags = _with_grid(study, items, flags)
        args = parse_arguments(flags)
        if args.dry_run or args.status:
            return launch.main(flags)
        run = _prepare(study, items, args, sample=not own.no_run, snapshot=own.snapshot)
        code = 0
        if run.sample and any(item.needs == "grid" for item in items):
            code = _run_grid(items, flags, own.snapshot)
            if code not in (0, 1):
                return code
        # Every item, also behind one that fails.
        return max([code, *[_make(item, run) for item in items]])
    except (ValueError, OSError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _with_grid(study: Study, items: Sequence[Item], flags: Sequence[str]) -> list[str]:
    """Return the flags with a grid, where they name none and the study is not the default."""
    args = parse_arguments(flags)
    if args.grid is not None or study is all_studies()[0]:
        return list(flags)
    grids = dict.fromkeys(item.grid for item in items if item.grid is not None)
    return [*flags, "--grid", ",".join(grids)]


def _run_grid(items: Sequence[Item], flags: Sequence[str], snapshot: str | None) -> int:
    """Run what the items need of the grid and besides it; return the launcher's exit code."""
    codes, asked = [launch.main(flags)], parse_arguments(flags).grid
    for grid in dict.fromkeys(item.grid for item in items if item.grid is not None):
        if asked is None or grid not in asked.split(","):
            more = grid if asked is None else f"{asked},{grid}"
            codes.append(launch.main([*flags, "--grid", more]))
    if max(codes) > 1:
        return max(codes)
    plan = make_plan(parse_arguments(flags))
    jobs: dict[str, Job] = {}
    for item in items:
        which = snapshot or item.snapshot
        if item.more is not None and which is not None:
            jobs |= {job.name: job for job in item.more(plan.units, which)}
    for name, reason in run_more(plan, list(jobs.values())).items():
        print(f"{name}: FAILED: {reason}", file=sys.stderr)
        codes.append(1)
    return max(codes)


def run_more(plan: Plan, jobs: Sequence[Job]) -> dict[str, str]:
    """Run jobs that grids have not, here; return what failed, why.

    Raises ValueError where OUT is in use.
    """
    jobs = [job for job in jobs if not job.is_done(plan.context)]
    outcome = Outcome()
    if jobs:
        with launcher_lock(plan.context.out), make_reporter(jobs, plan.context) as reporter:
            run_inline(jobs, plan.context, reporter, outcome)
    return outcome.failed


def _prepare(
    study: Study,
    items: Sequence[Item],
    args: argparse.Namespace,
    *,
    sample: bool,
    snapshot: str | None,
) -> Run:
    """Check the command line and find what the items need; ValueError or OSError for bad input."""
    if args.threads is not None:
        torch.set_num_threads(max(1, args.threads))
    _, kind = study.exhibits()
    if all(item.needs == "none" for item in items):
        return kind(out=output_folder(args), sample=sample, snapshot=snapshot)
    if sample:
        plan = make_plan(args)
        units, context = plan.units, plan.context
    else:
        _, units, context = load_units(args)
    return kind(
        out=context.out, units=tuple(units), context=context, sample=sample, snapshot=snapshot
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
