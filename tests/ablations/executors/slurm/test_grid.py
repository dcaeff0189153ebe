"""Grids on a real Slurm: what is sent, what survives, and what the user is told."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import NoReport, OnSlurm, launcher, wait
from resolved import part_jobs, whole_jobs
from slurm_cluster import NODES
from tiny_grid import ROOT, environment, launch_command, results

from ablations.executors.slurm import sender
from ablations.executors.slurm.grid import SlurmGrid, cancel_all, live_ids
from ablations.executors.slurm.submissions import REPORT, latest_ids, load_submissions
from ablations.launch import main
from ablations.pipeline.manifest import load_manifest

pytestmark = pytest.mark.slow
FLAGS = ("--executor", "slurm", "--device", "cpu", "--slurm", "time=30")
LATER = ("--slurm", "begin=now+3600")


@dataclass(frozen=True)
class Launcher:
    """A launcher in a forked child: jobs take seconds to start, and it need not."""

    process: BaseProcess
    log: Path

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code, and what it said."""
        return wait(self.process, 900), self.log.read_text()


def start(slurm, folder: Path, *flags: str) -> Launcher:
    """Start a launcher on the cluster."""
    log = folder / f"log-{len([*folder.glob('log-*')])}"
    log.touch()
    arguments = launch_command(folder, *FLAGS, *flags)[3:]
    fault = OnSlurm(environment() | slurm.environment)
    return Launcher(forked.start(launcher, arguments, log=log, fault=fault), log)


def launch(slurm, folder: Path, *flags: str) -> tuple[int, str]:
    """Launch on the cluster and wait; return the exit code, and what it said."""
    return start(slurm, folder, *flags).end()


def give_up(slurm, folder: Path, process: Launcher) -> None:
    """End a launcher and its jobs, when what comes next shows nothing."""
    process.process.kill()
    assert launch(slurm, folder, "--cancel")[0] == 0


def let_start(slurm, out: Path) -> None:
    """Let jobs start that were told to begin later."""
    for job in {element.split("_")[0] for element in ids_of(out).values()}:
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def undisturbed(folder: Path, *flags: str) -> dict[str, Any]:
    """Return the results of a grid in one process."""
    arguments = launch_command(folder, "--executor", "inline", "--threads", "1", *flags)[3:]
    log = folder / "log"
    assert (
        wait(forked.start(launcher, [*arguments, "--device", "cpu"], log=log, fault=NoReport()))
        == 0
    )
    return results(folder / "out")


def wait_for(condition, what: str, timeout: float = 300.0):
    """Return what the condition gives once it is true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s: {what}")


def ids_of(out: Path) -> dict[str, str]:
    return latest_ids(load_submissions(out))


def one(out: Path, prefix: str) -> str | None:
    """Return Slurm's id of the job whose name begins so, once it is known."""
    return next((i for name, i in ids_of(out).items() if name.startswith(prefix)), None)


def state_of(slurm, element: str) -> str:
    text = slurm.run("squeue", "-h", "-r", "-o", "%F_%K|%A|%T")
    states = {}
    for line in text.splitlines():
        joined, raw, state = line.strip().split("|")
        states[joined.removesuffix("_N/A")] = states[raw] = state
    return states.get(element, "gone")


def times_submitted(out: Path) -> Counter[str]:
    """Count how often each job was sent, from the records."""
    return Counter(entry.name for s in load_submissions(out) for _, entry in s.elements())


#: Two cells of one training; and one cell.
TWO, ONE = ("--only", "ncsn_124,ncsn_1245"), ("--only", "ncsnv2")


@pytest.fixture(scope="module")
def two_results(tmp_path_factory):
    """The results of two cells, undisturbed in one process."""
    return undisturbed(tmp_path_factory.mktemp("two"), *TWO)


@pytest.fixture(scope="module")
def one_result(tmp_path_factory):
    """The results of one cell, undisturbed in one process."""
    return undisturbed(tmp_path_factory.mktemp("one"), *ONE)


@pytest.fixture(scope="module")
def ended(slurm, tmp_path_factory):
    """A grid that a launcher of its own ran on the cluster, and what that said."""
    folder = tmp_path_factory.mktemp("slurm")
    run = subprocess.run(
        launch_command(folder, *FLAGS, *TWO, "--slurm", "partition=test"),
        cwd=ROOT,
        env=environment() | slurm.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return folder, run.returncode, run.stdout + run.stderr


def test_a_grid_on_slurm_gives_the_same_bytes_as_in_one_process(ended, two_results):
    folder, code, said = ended
    assert code == 0, said
    assert "jobs in Slurm" in said
    assert results(folder / "out") == two_results
    assert (folder / "out" / "report" / "index.html").exists()
    assert set(times_submitted(folder / "out").values()) == {1}


def test_the_report_was_made_by_its_own_job_after_all_others(ended, slurm):
    folder, *_ = ended
    submissions = load_submissions(folder / "out")
    (report,) = (s for s in submissions if s.entries[0].name == REPORT)
    others = {s.slurm_id for s in submissions} - {report.slurm_id}
    assert report.dependency == f"afterany:{':'.join(sorted(others, key=int))}"
    log = folder / "out" / "logs" / f"{report.slurm_id}_0_log.out"
    assert "Job completed successfully" in log.read_text()


def test_like_jobs_are_arrays_with_what_they_were_given(slurm, tmp_path):
    given = ("--workers", "1", *LATER, "--slurm", "cpus=2")
    process = start(slurm, tmp_path, *given)
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    os.kill(process.process.pid, signal.SIGINT)
    code, said = process.end()
    assert code == 130
    assert "the jobs go on in Slurm" in said
    arrays = [s for s in load_submissions(out) if len(s.entries) > 1]
    assert sorted(len(s.entries) for s in arrays) == [2, 2, 2, 4]
    for submission in arrays:
        shown = slurm.run("scontrol", "show", "job", submission.slurm_id)
        assert "ArrayTaskThrottle=1" in shown
        assert "NumCPUs=2" in shown
    assert slurm.job(one(out, REPORT))["NumCPUs"] == "1"
    code, output = launch(slurm, tmp_path, "--cancel")
    assert code == 0
    assert f"cancelled {len(ids_of(out))} jobs" in output
    wait_for(lambda: not set(ids_of(out).values()) & live(slurm), "an empty queue")


def test_more_jobs_than_an_array_takes_are_several(slurm, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sender, "largest_array", lambda: 3)
    code = run_here(slurm, monkeypatch, tmp_path, *LATER)
    assert code == 130
    cells = load_manifest(out).units
    wanted = {job.name for job in [*whole_jobs(cells), *part_jobs(cells)]} | {REPORT}
    assert times_submitted(out) == dict.fromkeys(wanted, 1)
    assert max(len(s.entries) for s in load_submissions(out)) == 3
    evaluations = [s for s in load_submissions(out) if s.entries[0].name.startswith("evaluate")]
    snapshots = {s.slurm_id for s in load_submissions(out) if s.entries[0].starts_with}
    assert len(snapshots) > len(evaluations)
    waited_for = {id for s in evaluations for id in re.findall(r"[:,](\d+)", s.dependency)}
    assert snapshots <= waited_for
    assert live(slurm) == set(live_ids(out).values())
    assert cancel_all(out) == len(wanted)


def test_jobs_that_will_never_start_are_warned_of(slurm, tmp_path):
    process = start(slurm, tmp_path, *LATER)
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    slurm.run("scontrol", "hold", one(out, "train").split("_")[0])
    code, output = launch(slurm, tmp_path, "--status")
    assert code == 0
    assert "JobHeldAdmin (it will not start by itself)" in output
    assert "BeginTime\n" in output
    wait_for(lambda: "will not start" in process.log.read_text(), "a warning")
    time.sleep(5)  # longer than the launcher sleeps
    assert launch(slurm, tmp_path, "--cancel")[0] == 0
    _, said = process.end()
    assert said.count("will not start by themselves: JobHeldAdmin; change that") == 1


def live(slurm) -> set[str]:
    text = slurm.run("squeue", "-h", "-r", "-o", "%F|%K")
    return {
        job if index == "N/A" else f"{job}_{index}"
        for job, index in (line.strip().split("|") for line in text.splitlines())
    }


def test_what_a_local_launcher_began_slurm_finishes(slurm, two_results, tmp_path):
    undisturbed(tmp_path, "--only", "ncsn_124")
    code, said = launch(slurm, tmp_path, *TWO)
    assert code == 0, said
    sent = {name.split("-")[0] for name in ids_of(tmp_path / "out")}
    assert "evaluate" in sent and sent.isdisjoint({"train", "baseline"})
    assert results(tmp_path / "out") == two_results


class Died(BaseException):
    """Stands for kill -9: nothing of the launcher's own catches it."""


def run_here(slurm, monkeypatch, folder: Path, *flags: str) -> int:
    """Launch in this process, and leave the jobs as Ctrl-C would."""
    for key, value in slurm.environment.items():
        monkeypatch.setenv(key, value)

    def leave(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SlurmGrid, "watch", leave)
    return main(launch_command(folder, *FLAGS, *flags)[3:])


@pytest.mark.parametrize("recorded", [False, True], ids=["before", "after"])
def test_a_launcher_that_dies_while_it_submits_neither_loses_nor_doubles_a_job(
    slurm, tmp_path, monkeypatch, recorded
):
    """It dies at each write of a record: before sbatch, and after it, with the ids unknown."""
    out = tmp_path / "out"
    save = sender.save_submission
    deaths = 0
    for at in itertools.cycle((1, 2, 3, 4)):
        calls = iter(range(1, 1000))

        def dying(submission, out, calls=calls, at=at):
            last = next(calls) == at
            if recorded or not last:
                save(submission, out)
            if last:
                raise Died

        monkeypatch.setattr(sender, "save_submission", dying)
        try:
            code = run_here(slurm, monkeypatch, tmp_path, *LATER)
        except Died:
            deaths += 1
        else:
            break
    assert code == 130
    assert deaths >= 6
    cells = load_manifest(out).units
    wanted = {job.name for job in [*whole_jobs(cells), *part_jobs(cells)]} | {REPORT}
    assert set(live_ids(out)) == wanted
    # Nothing waits in Slurm that no record knows of.
    assert live(slurm) == set(live_ids(out).values())
    assert cancel_all(out) == len(wanted)


def test_a_job_whose_launcher_died_before_its_pickle_was_in_place_gets_it(
    slurm, tmp_path, monkeypatch, one_result
):
    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("submitit.core.utils.JobPaths.move_temporary_file", die)
        with pytest.raises(Died):
            run_here(slurm, patch, tmp_path, *ONE, *LATER)
    process = start(slurm, tmp_path, *ONE, *LATER)
    wait_for(lambda: "jobs in Slurm" in process.log.read_text(), "jobs in Slurm")
    let_start(slurm, tmp_path / "out")
    code, said = process.end()
    assert code == 0, said
    assert set(times_submitted(tmp_path / "out").values()) == {1}
    assert results(tmp_path / "out") == one_result


LONG = (*ONE, "--set", "iterations=120", "--set", "snapshot_interval=40")

ENDLESS = (*ONE, "--set", "iterations=20000", "--set", "snapshot_interval=10000")


def trained(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "stages" / "train").rglob("checkpoint-*.pt"))


def progress_of(out: Path, prefix: str) -> float:
    for path in (out / "jobs").glob(f"{prefix}*.progress.json"):
        return json.loads(path.read_text())["fraction"]
    return 0.0


@pytest.fixture(scope="module")
def long_results(tmp_path_factory):
    """The results of the longer grid, undisturbed in one process."""
    return undisturbed(tmp_path_factory.mktemp("long"), *LONG)


def test_preempted_again_and_again_a_training_loses_nothing(slurm, tmp_path):
    process = start(slurm, tmp_path, *ENDLESS, "--slurm", "partition=low")
    out = tmp_path / "out"
    for times in (1, 2):
        seen = progress_of(out, "train")
        wait_for(lambda seen=seen: progress_of(out, "train") > seen, "training")
        job = one(out, "train")
        urgent = [
            slurm.run(
                *("sbatch", "--parsable", "--partition=high", f"--nodelist={node}"),
                *("--exclusive", "--output=/dev/null", "--wrap=true"),
            ).strip()
            for node in NODES
        ]
        for each in urgent:
            slurm.wait_for(each, "COMPLETED", seconds=300)
        assert restarts(slurm, job) == times
        goes_on(out, job, times)
    give_up(slurm, tmp_path, process)


def goes_on(out: Path, job: str, times: int = 1) -> None:
    """Wait until a training goes on where it has stopped for the n-th time."""
    log = out / "logs" / f"{job}_0_log.out"

    def iterations(verb: str) -> list[str]:
        return re.findall(rf"training {verb} at iteration (\d+)", log.read_text())

    wait_for(lambda: len(iterations("continues")) == times, "a training goes on")
    assert iterations("continues") == iterations("stopped")


def restarts(slurm, job: str) -> int:
    return int(slurm.job(job)["Restarts"])


def test_before_its_time_is_over_a_job_goes_back_to_the_queue(slurm, tmp_path):
    # Slurm looks for such jobs twice a minute.
    process = start(slurm, tmp_path, *ENDLESS)
    out = tmp_path / "out"
    wait_for(lambda: progress_of(out, "train"), "training")
    job = one(out, "train")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    wait_for(lambda: restarts(slurm, job) == 1, "a restart")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    goes_on(out, job)
    give_up(slurm, tmp_path, process)


def withholds_warning(pid: int) -> bool:
    """Return whether a process lets Slurm's warning wait, or takes it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 for mask in masks)


def test_a_warning_while_a_job_starts_is_not_its_end(slurm, tmp_path):
    process = start(slurm, tmp_path, *ONE)
    out = tmp_path / "out"
    job = wait_for(lambda: one(out, "train"), "the training's job")
    # Before Python runs at all, the signal ends the process, as it ends any.
    wait_for(lambda: [*filter(withholds_warning, slurm.pids(job, tasks=True))], "its process")
    slurm.run("scancel", "--signal=USR2", job)
    wait_for(lambda: [*(out / "stages" / "train").glob("*/result.json")], "a training", 600)
    give_up(slurm, tmp_path, process)
    assert restarts(slurm, job) == 1


def test_a_job_over_its_memory_is_named_with_the_reason(slurm, tmp_path):
    code, said = launch(slurm, tmp_path, *ONE, "--slurm", "memory=100M")
    assert code == 1, said
    assert "ended without a word: FAILED" in said
    assert "exceeded memory limit" in said


def test_a_rank_that_dies_sends_its_job_back_to_the_queue(slurm, tmp_path):
    flags = (*ONE, "--set", "iterations=200", "--set", "snapshot_interval=50")
    process = start(slurm, tmp_path, *flags, "--gpus", "2", "--workers", "1")
    out = tmp_path / "out"
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    job = one(out, "train")
    os.kill(slurm.pids(job, tasks=True)[-1], signal.SIGKILL)
    wait_for(lambda: restarts(slurm, job) == 1, "a restart")
    log = out / "logs" / f"{job}_0_log.out"
    wait_for(lambda: "training continues at iteration" in log.read_text(), "a training goes on")
    give_up(slurm, tmp_path, process)


def test_snapshots_are_measured_while_their_training_goes_on(slurm, tmp_path):
    flags = (*ONE, "--workers", "1", "--set", "iterations=10000", "--set", "snapshot_interval=250")
    process = start(slurm, tmp_path, *flags)
    out = tmp_path / "out"
    wait_for(lambda: list((out / "stages" / "distance").glob("*/result.json")), "a distance")
    assert state_of(slurm, one(out, "train")) == "RUNNING"
    assert not list((out / "stages" / "train").rglob("result.json"))
    os.kill(process.process.pid, signal.SIGINT)
    assert process.end()[0] == 130
    # Ctrl-C left them there.
    assert state_of(slurm, one(out, "train")) == "RUNNING"
    code, output = launch(slurm, tmp_path, *flags, "--status")
    assert code == 0
    assert "RUNNING   train digits" in output
    assert "left" in output
    assert "QUEUED    evaluate digits NCSNv2 seed 0" in output
    assert "parts of evaluate digits NCSNv2 seed 0: " in output
    assert launch(slurm, tmp_path, *flags, "--cancel")[0] == 0
    wait_for(lambda: not set(ids_of(out).values()) & live(slurm), "an empty queue")
    _, output = launch(slurm, tmp_path, *flags, "--status")
    assert "LOST      train digits" in output
    assert "CANCELLED" in output


@pytest.mark.parametrize("fault", ["kill -9 of the worker", "scancel"])
def test_a_job_that_vanishes_is_named_and_continued(slurm, tmp_path, fault, long_results):
    process = start(slurm, tmp_path, *LONG)
    out = tmp_path / "out"
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    job = one(out, "train")
    if fault == "scancel":
        slurm.run("scancel", job)
    else:
        for pid in slurm.pids(job, tasks=True):
            os.kill(pid, signal.SIGKILL)
    code, said = process.end()
    assert code == 1, said
    assert "ended without a word" in said
    assert ("CANCELLED" if fault == "scancel" else "FAILED") in said
    assert "waits for train-" in said
    assert not set(ids_of(out).values()) & live(slurm)
    if fault != "scancel":
        code, said = launch(slurm, tmp_path, *LONG)
        assert code == 0, said
        assert results(out) == long_results


def test_a_cancelled_pending_job_is_sent_again(slurm, tmp_path, one_result):
    process = start(slurm, tmp_path, *ONE, *LATER)
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    slurm.run("scancel", one(out, "baseline"))
    let_start(slurm, out)
    code, said = process.end()
    assert code == 1, said
    assert "CANCELLED" in said
    code, said = launch(slurm, tmp_path, *ONE)
    assert code == 0, said
    assert results(out) == one_result


def test_a_killed_launcher_s_jobs_are_watched_by_the_next(slurm, tmp_path, one_result):
    out = tmp_path / "out"
    process = start(slurm, tmp_path, *ONE, *LATER)
    wait_for(lambda: one(out, REPORT), "the report's job")
    process.process.kill()
    process.process.join()
    before = ids_of(out)
    process = start(slurm, tmp_path, *ONE, *LATER)
    wait_for(lambda: "jobs in Slurm" in process.log.read_text(), "jobs in Slurm")
    let_start(slurm, out)
    code, said = process.end()
    assert code == 0, said
    assert ids_of(out) == before
    assert results(out) == one_result


def test_what_waits_for_a_failed_training_goes_too(slurm, tmp_path):
    flags = (*ONE, "--set", "learning_rate=1e30")
    code, said = launch(slurm, tmp_path, *flags)
    assert code == 1
    assert "training diverged" in said
    assert "waits for train-" in said
    assert not set(ids_of(tmp_path / "out").values()) & live(slurm)
    assert not (tmp_path / "out" / "report.pending").exists()  # the report came nevertheless
    code, said = launch(slurm, tmp_path, *flags)
    assert code == 1
    assert "failed before" in said


def test_a_node_that_fails_and_comes_back_costs_no_result(slurm, tmp_path, long_results):
    process = start(slurm, tmp_path, *LONG)
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    for node in NODES:
        slurm.kill_node(node, jobs=True)
        slurm.set_node("down", node)
    for node in NODES:
        slurm.start_node(node)
    code, said = process.end()
    if code == 1:  # what did not go back to the queue by itself is named, and the command goes on
        assert "ended without a word" in said
        code, said = launch(slurm, tmp_path, *LONG)
    assert code == 0, said
    assert results(tmp_path / "out") == long_results


def test_what_sbatch_refuses_is_one_line(slurm, tmp_path):
    code, said = launch(slurm, tmp_path, "--slurm", "partition=nowhere")
    assert code == 2
    *before, last = said.splitlines()
    assert last.startswith("error: sbatch refused: ")
    assert "partition" in last
    assert "Traceback" not in said and not any("error" in line for line in before)
    assert load_submissions(tmp_path / "out") == []


def test_without_slurm_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(launch_command(tmp_path, *FLAGS)[3:]) == 2
    assert "error: --executor slurm: sbatch is not on the PATH" in capsys.readouterr().err
