"""The study of the guide, which is known to nothing but its own file, through every executor."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from places import ROOT

from ablations import studies
from ablations.engine.context import Context
from ablations.launch import main

#: A launcher that knows the study, in a process of its own.
PROGRAM = """
import sys
from ablations import studies
studies.MODULES["points"] = "points_study"
from ablations.launch import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def study(tmp_path_factory):
    """The guide's text as a module that every process finds, registered as the guide says."""
    folder = tmp_path_factory.mktemp("points")
    guide = (ROOT / "docs" / "add-a-study.md").read_text()
    (text,) = re.findall(
        r'^```python title="ablations/studies/points/study.py"\n(.*?)^```', guide, re.M | re.S
    )
    (folder / "points_study.py").write_text(text)
    paths = [str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(studies.MODULES, "points", "points_study")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("points_study")
        del sys.modules["points_study"]


def flags(out, *more):
    return ["--grid", "points", "--out", str(out), "--device", "cpu", "--threads", "1", *more]


def results(study, out):
    """What was found, by the jobs' names."""
    store = Context.reading(out).store
    jobs = study.jobs(study.FILE.load(out).units)
    stages = {job.name: job.throw.stage if job.kind == "throw" else job.stage for job in jobs}
    found = {name: store.result(stage) for name, stage in stages.items()}
    assert len(found) == 4 and None not in found.values()
    return found


@pytest.fixture(scope="module")
def inline(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("inline") / "out"
    assert main(flags(out, "--executor", "inline")) == 0
    return out


def test_it_runs_and_reports_and_then_there_is_nothing_to_do(study, inline, capsys):
    page = (inline / "report" / "index.html").read_text()
    assert page.count(": 3.") == 3
    assert main(flags(inline, "--executor", "inline")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["--out", str(inline), "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["DONE"] * 4
    thrown = [found["pi"] for name, found in results(study, inline).items() if "throw" in name]
    (mean,) = (found["pi"] for name, found in results(study, inline).items() if "mean" in name)
    assert mean == pytest.approx(sum(thrown) / 3)


def test_a_part_of_it_may_be_run_first(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags(out, "--dry-run")) == 0
    assert "throw-1000-seed2" in capsys.readouterr().out
    assert not out.exists()
    assert main(flags(out, "--only", "*seed1", "--executor", "inline")) == 0
    capsys.readouterr()
    assert main(["--out", str(out), "--status"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["PLANNED", "DONE", "PLANNED", "PLANNED"]


def test_bad_input_is_one_line(inline, tmp_path, capsys):
    for more, said in (
        (["--set", "points=x"], "points = 'x' is not a whole number"),
        (["--datasets", "digits"], "--datasets means nothing to the study points"),
        (["--budget", "paper"], "--budget paper: unknown; known: auto, quick"),
        (["--grid", "points,paper"], "they are of the studies points and ncsnv2"),
    ):
        assert main(flags(tmp_path / "out", *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert main(["--grid", "paper", "--out", str(inline)]) == 2
    assert "holds the study points" in capsys.readouterr().err
    assert main(flags(inline, "--set", "points=7")) == 2
    assert "holds overrides" in capsys.readouterr().err


@pytest.mark.slow
def test_local_processes_that_are_killed_end_with_the_same_results(study, inline, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, *flags(out, "--executor", "local", "--workers", "2")]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while process.poll() is None and not list(out.glob("stages/throw/*/result.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("stages/mean/*/result.json"))
    assert subprocess.run(command, cwd=tmp_path, timeout=300).returncode == 0
    assert results(study, out) == results(study, inline)


@pytest.mark.slow
def test_slurm_gives_the_same_results_and_has_the_timed_job_alone(study, inline, tmp_path, slurm):
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, *flags(out, "--executor", "slurm")]
    command += ["--slurm", "time=30"]
    variables = slurm.environment | {"PYTHONPATH": os.environ["PYTHONPATH"]}
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, timeout=600, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(study, out) == results(study, inline)
    scripts = [path.read_text() for path in (out / "logs").glob("*_submission.sh")]
    assert sum("points-mean-" in text for text in scripts) == 1
    for text in scripts:
        assert ("#SBATCH --exclusive" in text) == ("--job-name=points-mean-" in text)
