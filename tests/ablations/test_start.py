"""What a start imports: seconds of every command, and of every worker."""

import os
import subprocess
import sys

import pytest
from places import ROOT
from resolved import cell

from ablations.engine.manifest import Manifest
from ablations.pipeline.manifest import GRID_FILE

#: What only some of the work needs.
LATER = {
    *("torch._dynamo", "torch._inductor", "torch_fidelity", "torchvision"),
    *("pandas", "matplotlib", "scipy.stats", "sklearn", "sympy"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder that holds a grid of one cell, of which nothing is done."""
    out = tmp_path_factory.mktemp("begun")
    manifest = Manifest(
        grid="paper", budget="quick", overrides={}, data_root="data", units=[cell(width=2)]
    )
    GRID_FILE.save(manifest, out)
    return out


def imported(program, *arguments):
    """Return the modules that a new process has imported at the end of a program."""
    text = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"},
    )
    return set(done.stderr.splitlines()[-1].split()), done.stdout


LAUNCH = "from ablations.launch import main\nassert main(sys.argv[1:]) == 0"


SLOW = [pytest.param(look, marks=pytest.mark.slow) for look in ("--verify", "--settings")]


@pytest.mark.parametrize("look", ["--status", *SLOW])
def test_a_look_imports_nothing_that_it_does_not_need(begun, look):
    modules, said = imported(LAUNCH, "--out", begun, look)
    assert ("NCSNv2" in said) or look == "--settings"
    assert "ablations.launch" in modules
    assert not modules & LATER


def test_what_a_dry_run_counts_and_times_takes_no_compiler(begun):
    modules, said = imported(
        "from pathlib import Path\n"
        "from resolved import context\n"
        "from ablations.pipeline.hours import estimate_hours\n"
        "from ablations.pipeline.jobs import grid_jobs\n"
        "from ablations.pipeline.manifest import GRID_FILE\n"
        "jobs = grid_jobs(GRID_FILE.load(Path(sys.argv[1])).units)\n"
        "print(sum(job.flops + job.disk_bytes for job in jobs) > 0)\n"
        "print(estimate_hours(jobs[:1], context(Path('.'))) > 0)",
        begun,
    )
    assert said.split() == ["True", "True"]
    assert not modules & LATER


def test_a_worker_starts_without_what_only_some_jobs_need():
    modules, _ = imported(
        "import ablations.executors.local, ablations.pipeline.evaluation\n"
        "import ablations.studies.ncsnv2.study, ablations.studies.finite_difference.study"
    )
    assert "torch" in modules
    assert not modules & LATER


def test_what_is_imported_is_seen():
    assert "pandas" in imported("import pandas")[0] & LATER
