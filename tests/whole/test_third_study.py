"""A third study, which is known to nothing but its own file, through every executor."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_study
from places import ROOT

from ablations import studies
from ablations.engine.stages import StageStore
from ablations.launch import main

#: A launcher that knows the study, in a process of its own.
PROGRAM = """
import sys
from ablations import studies
studies.MODULES["draws"] = "tiny_study"
from ablations.engine.stages import StageStore
from ablations.launch import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(studies.MODULES, "draws", "tiny_study")
    paths = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def flags(out, *more):
    return ["--grid", "draws", "--out", str(out), "--device", "cpu", "--threads", "1", *more]


def results(out):
    """What does not depend on times: results, and the bytes of every block."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("block-*.npy"))}
    manifest = tiny_study.FILE.load(out)
    store = StageStore(out / "stages")
    for job in tiny_study.jobs(manifest.units):
        stage = job.draw.stage if job.kind == "draw" else job.stage
        found[job.name] = store.result(stage)
    assert None not in found.values()
    return found


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    out = tmp_path_factory.mktemp("draws") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(studies.MODULES, "draws", "tiny_study")
        assert main(flags(out, "--executor", "inline")) == 0
    return out


def test_it_runs_and_reports_and_then_there_is_nothing_to_do(inline, capsys):
    page = (inline / "report" / "index.html").read_text()
    assert "Means of draws" in page and "draws/seed1" in page
    assert main(flags(inline, "--executor", "inline")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["--out", str(inline), "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["DONE"] * 3
    assert main(flags(inline, "--dry-run", "--only", "draws/seed1")) == 0
    assert "draws of draws/seed1" in capsys.readouterr().out


def test_bad_input_is_one_line(inline, tmp_path, capsys):
    for more, said in (
        (["--set", "n_draws=x"], "n_draws = 'x' is not a whole number"),
        (["--datasets", "digits"], "--datasets means nothing to the study draws"),
        (["--budget", "paper"], "--budget paper: unknown; known: auto, quick"),
    ):
        assert main(flags(tmp_path / "out", *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert main(["--grid", "paper", "--out", str(inline)]) == 2
    assert "holds the study draws" in capsys.readouterr().err
    assert main(flags(inline, "--set", "n_draws=7")) == 2
    assert "holds overrides" in capsys.readouterr().err


@pytest.mark.slow
def test_local_processes_that_are_killed_end_with_the_same_results(inline, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, *flags(out, "--executor", "local", "--workers", "2")]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while process.poll() is None and not list(out.glob("stages/draw/*/block-0.npy")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, cwd=tmp_path, timeout=300).returncode == 0
    assert results(out) == results(inline)


@pytest.mark.slow
def test_slurm_gives_the_same_results_and_has_the_timed_job_alone(inline, tmp_path, slurm):
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, *flags(out, "--executor", "slurm")]
    command += ["--slurm", "time=30"]
    variables = slurm.environment | {"PYTHONPATH": os.environ["PYTHONPATH"]}
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, timeout=600, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(out) == results(inline)
    scripts = [path.read_text() for path in (out / "logs").glob("*_submission.sh")]
    assert sum("draws-summary-" in text for text in scripts) == 1
    for text in scripts:
        assert ("#SBATCH --exclusive" in text) == ("--job-name=draws-summary-" in text)
