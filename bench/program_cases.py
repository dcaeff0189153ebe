"""Cases of the programs around training and sampling: launcher and report."""

import contextlib
import io
from pathlib import Path

import torch

from ablations.cells import Cell
from ablations.collect import collect
from ablations.jobs import Job
from ablations.launch import main, make_plan, parse_arguments
from ablations.plan import check_disk
from ablations.report import build_report
from bench.registry import Pair, Setting, case


@case("planning[10,000 cells]", "launcher")
def _(setting: Setting) -> Pair:
    """From the command line to every cell and job, with room for them on the disk.

    The dataset has been prepared before. Networks of width 2 take as long to plan as any others,
    and ten thousand cells of them ask for 5 GiB only.
    """
    n_seeds = setting.size(1250, 2)
    arguments = ["--grid", "factorial", "--seeds", str(n_seeds), "--executor", "inline"]
    arguments += ["--out", str(setting.folder / "out"), "--device", "cpu"]
    sizes = {"width": 2, "n_selection": 2, "n_final": 4, "n_dump": 2}
    arguments += [f"--set={name}={value}" for name, value in sizes.items()]

    def plan() -> tuple[list[Cell], list[Job]]:
        planned = make_plan(parse_arguments(arguments))
        assert len(planned.cells) == 8 * n_seeds
        check_disk(planned.cells, planned.jobs, planned.context)
        return planned.cells, planned.jobs

    return Pair(candidate=plan)


_GRID = """
name = "small"
variants = {variants}
budget = "quick"

[set]
width = 2
iterations = 6
batch_size = 4
snapshot_interval = 3
test_interval = 2
n_levels = 3
n_steps_each = 2
n_selection = 4
n_final = 6
n_dump = 3
sampling_batch = 4
"""


@case("report[3 cells]", "report")
def _(setting: Setting) -> Pair:
    """From a finished grid's files to tables, figures and page."""
    grid, out = setting.folder / "small.toml", setting.folder / "out"
    variants = ["ncsnv2", "ncsn_1245", "ncsn_124"][: setting.size(3, 1)]
    grid.write_text(_GRID.format(variants=variants))
    # As many threads as there are now: an inline grid sets them for the whole process.
    threads = str(torch.get_num_threads())
    flags = ["--executor", "inline", "--device", "cpu", "--threads", threads]
    with contextlib.redirect_stdout(io.StringIO()):
        main(["--grid", str(grid), "--out", str(out), *flags])
    finished = collect(out)
    assert finished.run["complete"]

    def report() -> Path:
        return build_report(collect(out), setting.folder / "report")

    return Pair(candidate=report)
