"""The Slurm that the launcher's tests run on behaves as a real one: it is one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import submitit
from slurm_cluster import CPUS_PER_NODE, NODES, SlurmCluster, processes, wait_until

pytestmark = pytest.mark.slow
Submit = Callable[..., str]
_SECONDS = 120  # for one test, the start of the daemons included


@pytest.fixture(autouse=True)
def _hard_limit() -> Iterator[None]:
    def expire(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def submit(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Submit a line of shell with options of sbatch; returns the job's id."""
    outputs = f"--output={tmp_path_factory.mktemp('jobs')}/%j.txt"

    def sbatch(line: str, *options: str) -> str:
        wrapped = ("--open-mode=append", *options, f"--wrap={line}")
        return slurm.run("sbatch", "--parsable", outputs, *wrapped).strip()

    return sbatch


def _output(slurm: SlurmCluster, job_id: str) -> list[str]:
    return Path(slurm.job(job_id)["StdOut"]).read_text().splitlines()


@pytest.fixture(scope="module", autouse=True)
def overdue(slurm: SlurmCluster, submit: Submit) -> str:
    """A job whose time is over; begun first because Slurm looks for those every 30 s only."""
    job = submit("sleep 100", f"--nodelist={NODES[1]}")
    slurm.wait_for(job, "RUNNING")
    # Not now: Slurm takes no end that is over when it hears of it.
    slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now+5")
    return job


@pytest.fixture
def executor(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """submitit's executor in the cluster's environment."""
    for name in set(os.environ) - set(slurm.environment):
        monkeypatch.delenv(name)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    made = submitit.SlurmExecutor(tmp_path)
    made.update_parameters(time=5, signal_delay_s=30)
    return made


def test_submitit_brings_back_what_a_job_returns(executor) -> None:
    assert executor.submit(math.factorial, 20).result() == math.factorial(20)


def test_accounting_knows_a_job_whose_task_was_killed(slurm: SlurmCluster, executor) -> None:
    job = executor.submit(time.sleep, 100)
    wait_until(lambda: bool(slurm.pids(job.job_id, tasks=True)), "the task runs")
    assert set(slurm.pids(job.job_id, tasks=True)) < set(slurm.pids(job.job_id))
    for pid in slurm.pids(job.job_id, tasks=True):
        os.kill(pid, signal.SIGKILL)
    slurm.wait_for(job.job_id, "FAILED")
    wait_until(lambda: slurm.accounted(job.job_id) == "FAILED", "it is accounted as failed")
    wait_until(lambda: not slurm.pids(job.job_id), "nothing of it is left")


def test_two_nodes_have_names_that_resolve(slurm: SlurmCluster, submit: Submit) -> None:
    line = f'{sys.executable} -c \'import socket, os; n = os.environ["SLURMD_NODENAME"]'
    line += "; print(n, socket.gethostbyname(n))'"
    job = submit(f"srun {line}", "--nodes=2", "--ntasks-per-node=1")
    slurm.wait_for(job, "COMPLETED")
    expected = {f"{NODES[0]} 127.0.0.1", f"{NODES[1]} 127.0.0.2"}
    assert set(_output(slurm, job)) == expected


# Says which run of the job it is, and when it is warned; only the first run lasts.
_FIRST_LASTS = """
trap 'echo warned' USR2
echo run ${SLURM_RESTART_COUNT:-0}
if [ -z "$SLURM_RESTART_COUNT" ]; then sleep 100 & wait; wait; fi
"""


def _begin(slurm: SlurmCluster, submit: Submit, *options: str) -> str:
    job = submit(_FIRST_LASTS, f"--nodelist={NODES[0]}", "--signal=B:USR2@30", *options)
    output = Path(slurm.job(job)["StdOut"])
    wait_until(lambda: output.exists() and output.read_text() == "run 0\n", f"{job} has begun")
    return job


def _begins_again(slurm: SlurmCluster, job: str) -> None:
    slurm.wait_for(job, "COMPLETED")
    lines = _output(slurm, job)
    assert lines[0] == "run 0" and lines[-1] == "run 1"
    assert slurm.job(job)["Restarts"] == "1"


def test_requeued_job_runs_again_under_its_id(slurm: SlurmCluster, submit: Submit) -> None:
    job = _begin(slurm, submit)
    slurm.run("scontrol", "requeue", job)
    _begins_again(slurm, job)


def test_job_in_high_takes_the_place_of_one_in_low(slurm: SlurmCluster, submit: Submit) -> None:
    cpus = f"--cpus-per-task={CPUS_PER_NODE}"
    low = _begin(slurm, submit, "--partition=low", cpus)
    high = submit("true", "--partition=high", f"--nodelist={NODES[0]}", cpus)
    slurm.wait_for(high, "COMPLETED")
    assert "warned" in _output(slurm, low)
    _begins_again(slurm, low)


def test_jobs_of_a_lost_node_run_again_when_it_is_back(slurm: SlurmCluster, submit: Submit) -> None:
    job = _begin(slurm, submit)
    slurm.kill_node(jobs=True)
    assert not slurm.pids(job)
    slurm.set_node("down")
    assert slurm.job(job)["JobState"] != "RUNNING"
    slurm.start_node()
    _begins_again(slurm, job)


def test_controller_continues_from_its_saved_state(slurm: SlurmCluster, submit: Submit) -> None:
    job = submit("sleep 100", f"--nodelist={NODES[0]}")
    wait_until(lambda: bool(slurm.pids(job)), "the job runs")
    begun, saved = time.time(), slurm.directory / "slurmctld" / "job_state"
    wait_until(lambda: saved.exists() and saved.stat().st_mtime > begun, "it is saved")
    before = slurm.pids(job)
    slurm.kill_controller()
    assert "is DOWN" in slurm.run("scontrol", "ping", check=False)
    slurm.start_controller()
    assert slurm.job(job)["JobState"] == "RUNNING" and slurm.pids(job) == before
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")


def test_job_over_its_memory_is_killed(slurm: SlurmCluster, submit: Submit) -> None:
    line = f"exec srun {sys.executable} -c 'import time; x = b\"x\" * 2**29; time.sleep(100)'"
    job = submit(line, "--mem=100")
    slurm.wait_for(job, "FAILED")
    assert any("exceeded memory limit" in line for line in _output(slurm, job))


def test_job_over_its_time_is_killed(slurm: SlurmCluster, overdue: str) -> None:
    slurm.wait_for(overdue, "TIMEOUT")
    wait_until(lambda: slurm.accounted(overdue) == "TIMEOUT", "it is accounted as timed out")


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path leaves room for the names of sockets."""
    return tmp_path_factory.mktemp("s")


def test_nothing_is_left_when_the_owner_is_killed(short_path: Path) -> None:
    script = (
        "import sys, time, pathlib, slurm_cluster\n"
        "with slurm_cluster.SlurmCluster(pathlib.Path(sys.argv[1])) as cluster:\n"
        "    job = cluster.run('sbatch', '--parsable', '--wrap', 'sleep 100')\n"
        "    cluster.wait_for(job.strip(), 'RUNNING')\n"
        "    print('up', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, short_path],
        cwd=short_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout.readline() == "up\n"
        assert len(_alive(short_path)) > 6
        owner.kill()
    wait_until(lambda: not _alive(short_path), "everything has ended", seconds=20)


def _alive(directory: Path) -> list[int]:
    """The daemons and jobs of the cluster in ``directory``."""
    marker = f"SLURM_CONF={directory}/etc/slurm.conf"
    return [pid for pid, _, variables in processes() if marker in variables]


def test_failing_start_shows_the_logs(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "munged"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho the disk is full >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    with (
        pytest.raises(RuntimeError, match=r"(?s)munged ended by itself\n.*\nthe disk is full"),
        SlurmCluster(short_path),
    ):
        pytest.fail("it started without munged")


def test_a_directory_with_too_long_a_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its path must be shorter"):
        SlurmCluster(tmp_path / ("x" * 60))
