"""Cases of the programs around training and sampling: launcher and report."""

import contextlib
import io
from pathlib import Path

import torch

from ablations.command_line import make_plan, parse_arguments
from ablations.engine.disk import check_disk
from ablations.engine.job import Job
from ablations.launch import main
from ablations.pipeline.cell import Cell
from ablations.studies.ncsnv2.collect import collect
from ablations.studies.ncsnv2.report import build_report
from bench.finished import write_finished
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
    sizes = {"width": 2, "n_selection": 2, "n_final": 4, "n_loss": 2, "n_dump": 2}
    arguments += [f"--set={name}={value}" for name, value in sizes.items()]

    def plan() -> tuple[list[Cell], list[Job]]:
        planned = make_plan(parse_arguments(arguments))
        assert len(planned.units) == 8 * n_seeds
        check_disk(planned.jobs, planned.context)
        return planned.units, planned.jobs

    return Pair(candidate=plan)


_TINY_GRID = Path(__file__).parent / "tiny.toml"


@case("report[3 cells]", "report")
def _(setting: Setting) -> Pair:
    """From a finished grid's files to tables, figures and page."""
    out = setting.folder / "out"
    # As many threads as there are now: an inline grid sets them for the whole process.
    threads = str(torch.get_num_threads())
    flags = ["--executor", "inline", "--device", "cpu", "--threads", threads]
    if setting.tiny:
        flags += ["--only", "ncsnv2"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(["--grid", str(_TINY_GRID), "--out", str(out), *flags])
    assert code == 0

    def report() -> Path:
        return build_report(collect(out), setting.folder / "report")

    return Pair(candidate=report)


@case("collecting[10,000 cells]", "report")
def _(setting: Setting) -> Pair:
    """From the files of finished cells to the tables' numbers, every checksum verified."""
    out = setting.folder / "out"
    write_finished(out, setting.size(10_000, 8))
    return Pair(candidate=lambda: collect(out))
