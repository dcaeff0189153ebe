"""Grids on a real Slurm: what is sent, what survives, and what the user is told."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from slurm_cluster import NODES
from tiny_grid import ROOT, environment, launch_command, results

from ablations.engine.manifest import load_manifest
from ablations.executors.slurm import sender
from ablations.executors.slurm.grid import SlurmGrid, cancel_all, live_ids
from ablations.executors.slurm.submissions import REPORT, latest_ids, load_submissions
from ablations.launch import main
from ablations.pipeline.jobs import plan_jobs, snapshot_jobs

pytestmark = pytest.mark.slow
FLAGS = ("--executor", "slurm", "--device", "cpu", "--slurm", "time=30")


def start(slurm, folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Start a launcher on the cluster."""
    return subprocess.Popen(
        launch_command(folder, *FLAGS, *flags),
        cwd=ROOT,
        env=environment() | slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(slurm, folder: Path, *flags: str) -> tuple[int, str, str]:
    """Launch on the cluster and wait; return the exit code, and what it said."""
    process = start(slurm, folder, *flags)
    try:
        output, errors = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"no end in 400 s: {output}{errors}") from None
    return process.returncode, output, errors


def wait_for(condition, what: str, timeout: float = 120.0):
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


@pytest.fixture(scope="module")
def ended(slurm, tmp_path_factory):
    """A whole grid that ran on the cluster, and what the launcher said."""
    folder = tmp_path_factory.mktemp("slurm")
    return folder, launch(slurm, folder, "--slurm", "partition=test")


def test_a_grid_on_slurm_gives_the_same_bytes_as_in_this_process(ended, finished):
    folder, (code, output, errors) = ended
    assert code == 0, output + errors
    assert "jobs in Slurm" in output
    assert results(folder / "out") == results(finished / "out")
    assert (folder / "out" / "report" / "index.html").exists()
    assert set(times_submitted(folder / "out").values()) == {1}


def test_the_report_was_made_by_its_own_job_after_all_others(ended, slurm):
    folder, _ = ended
    submissions = load_submissions(folder / "out")
    (report,) = (s for s in submissions if s.entries[0].name == REPORT)
    others = {s.slurm_id for s in submissions} - {report.slurm_id}
    assert report.dependency == f"afterany:{':'.join(sorted(others, key=int))}"
    log = folder / "out" / "logs" / f"{report.slurm_id}_0_log.out"
    assert "Job completed successfully" in log.read_text()


def test_like_jobs_are_arrays_with_what_they_were_given(slurm, tmp_path):
    given = ("--workers", "1", "--slurm", "begin=now+3600", "--slurm", "cpus=2")
    process = start(slurm, tmp_path, *given)
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the jobs go on in Slurm" in errors
    arrays = [s for s in load_submissions(out) if len(s.entries) > 1]
    assert sorted(len(s.entries) for s in arrays) == [2, 2, 2, 4]
    for submission in arrays:
        shown = slurm.run("scontrol", "show", "job", submission.slurm_id)
        assert "ArrayTaskThrottle=1" in shown
        assert "NumCPUs=2" in shown
    assert slurm.job(one(out, REPORT))["NumCPUs"] == "1"
    code, output, _ = launch(slurm, tmp_path, "--cancel")
    assert code == 0
    assert f"cancelled {len(ids_of(out))} jobs" in output
    wait_for(lambda: not set(ids_of(out).values()) & live(slurm), "an empty queue")


def test_more_jobs_than_an_array_takes_are_several(slurm, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sender, "largest_array", lambda: 3)
    code = run_here(slurm, monkeypatch, tmp_path, "--slurm", "begin=now+3600")
    assert code == 130
    cells = load_manifest(out).cells
    wanted = {job.name for job in [*plan_jobs(cells), *snapshot_jobs(cells)]} | {REPORT}
    assert times_submitted(out) == dict.fromkeys(wanted, 1)
    assert max(len(s.entries) for s in load_submissions(out)) == 3
    evaluations = [s for s in load_submissions(out) if s.entries[0].name.startswith("evaluate")]
    snapshots = {s.slurm_id for s in load_submissions(out) if s.entries[0].iteration}
    assert len(snapshots) > len(evaluations)
    waited_for = {id for s in evaluations for id in re.findall(r"[:,](\d+)", s.dependency)}
    assert snapshots <= waited_for
    assert live(slurm) == set(live_ids(out).values())
    assert cancel_all(out) == len(wanted)


def test_jobs_that_will_never_start_are_warned_of(slurm, tmp_path):
    process = start(slurm, tmp_path, "--slurm", "begin=now+3600")
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    slurm.run("scontrol", "hold", one(out, "train").split("_")[0])
    code, output, _ = launch(slurm, tmp_path, "--status")
    assert code == 0
    assert "JobHeldAdmin (it will not start by itself)" in output
    assert "BeginTime\n" in output
    time.sleep(20)  # longer than the launcher sleeps
    code, _, _ = launch(slurm, tmp_path, "--cancel")
    assert code == 0
    _, said = end(process)
    assert said.count("will not start by themselves: JobHeldAdmin; change that") == 1


def live(slurm) -> set[str]:
    text = slurm.run("squeue", "-h", "-r", "-o", "%F|%K")
    return {
        job if index == "N/A" else f"{job}_{index}"
        for job, index in (line.strip().split("|") for line in text.splitlines())
    }


def test_what_a_local_launcher_began_slurm_finishes(slurm, finished, tmp_path):
    run = subprocess.run(
        launch_command(tmp_path, "--executor", "inline", "--threads", "1", "--only", "ncsn_124"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    code, output, errors = launch(slurm, tmp_path)
    assert code == 0, output + errors
    assert not any(name.startswith("baseline") for name in ids_of(tmp_path / "out"))
    assert results(tmp_path / "out") == results(finished / "out")


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
    out, later = tmp_path / "out", ("--slurm", "begin=now+3600")
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
            code = run_here(slurm, monkeypatch, tmp_path, *later)
        except Died:
            deaths += 1
        else:
            break
    assert code == 130
    assert deaths >= 6
    cells = load_manifest(out).cells
    wanted = {job.name for job in [*plan_jobs(cells), *snapshot_jobs(cells)]} | {REPORT}
    assert set(live_ids(out)) == wanted
    # Nothing waits in Slurm that no record knows of.
    assert live(slurm) == set(live_ids(out).values())
    assert cancel_all(out) == len(wanted)


def test_a_job_whose_launcher_died_before_its_pickle_was_in_place_gets_it(
    slurm, tmp_path, monkeypatch, finished
):
    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("submitit.core.utils.JobPaths.move_temporary_file", die)
        with pytest.raises(Died):
            run_here(slurm, patch, tmp_path, "--slurm", "begin=now+12")
    code, output, errors = launch(slurm, tmp_path)
    assert code == 0, output + errors
    assert set(times_submitted(tmp_path / "out").values()) == {1}
    assert results(tmp_path / "out") == results(finished / "out")


LONG = ("--only", "ncsnv2", "--set", "iterations=600", "--set", "snapshot_interval=300")


def long_run(slurm, folder: Path, *flags: str) -> subprocess.Popen[str]:
    return start(slurm, folder, *LONG, *flags)


def trained(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "stages" / "train").rglob("checkpoint-*.pt"))


def progress_of(out: Path, prefix: str) -> float:
    for path in (out / "jobs").glob(f"{prefix}*.progress.json"):
        return json.loads(path.read_text())["fraction"]
    return 0.0


@pytest.fixture(scope="module")
def long_results(tmp_path_factory):
    """The results of the longer grid, undisturbed in one process."""
    folder = tmp_path_factory.mktemp("long")
    run = subprocess.run(
        launch_command(folder, "--executor", "inline", "--threads", "1", *LONG),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return results(folder / "out")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=400)
    return process.returncode, output + errors


def test_preempted_again_and_again_a_training_loses_nothing(slurm, tmp_path, long_results):
    process = long_run(slurm, tmp_path, "--slurm", "partition=low")
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
            slurm.wait_for(each, "COMPLETED")
        assert restarts(slurm, job) == times
    code, said = end(process)
    assert code == 0, said
    assert results(out) == long_results


def restarts(slurm, job: str) -> int:
    return int(slurm.job(job)["Restarts"])


def test_before_its_time_is_over_a_job_goes_back_to_the_queue(slurm, tmp_path):
    # Slurm looks for such jobs twice a minute.
    flags = ("--set", "iterations=2500", "--set", "snapshot_interval=2500")
    process = start(slurm, tmp_path, "--only", "ncsnv2", *flags)
    out = tmp_path / "out"
    wait_for(lambda: progress_of(out, "train"), "training")
    job = one(out, "train")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    wait_for(lambda: restarts(slurm, job) == 1, "a restart")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    code, said = end(process)
    assert code == 0, said
    log = (out / "logs" / f"{job}_0_log.out").read_text()
    stopped = re.search(r"training stopped at iteration (\d+)", log)
    assert stopped is not None
    assert f"training continues at iteration {stopped[1]}" in log


def test_a_warning_while_a_job_starts_is_not_its_end(slurm, tmp_path):
    process = start(slurm, tmp_path, "--only", "ncsnv2")
    out = tmp_path / "out"
    job = wait_for(lambda: one(out, "train"), "the training's job")
    wait_for(lambda: slurm.pids(job, tasks=True), "its process")
    slurm.run("scancel", "--signal=USR2", job)
    code, said = end(process)
    assert code == 0, said
    assert restarts(slurm, job) == 1


def test_a_job_over_its_memory_is_named_with_the_reason(slurm, tmp_path):
    code, output, errors = launch(slurm, tmp_path, "--only", "ncsnv2", "--slurm", "memory=100M")
    assert code == 1, output + errors
    assert "ended without a word: FAILED" in output
    assert "exceeded memory limit" in output


def test_a_rank_that_dies_sends_its_job_back_to_the_queue(slurm, tmp_path):
    process = long_run(slurm, tmp_path, "--gpus", "2")
    out = tmp_path / "out"
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    job = one(out, "train")
    os.kill(slurm.pids(job, tasks=True)[-1], signal.SIGKILL)
    wait_for(lambda: restarts(slurm, job) == 1, "a restart")
    code, said = end(process)
    assert code == 0, said


def test_snapshots_are_measured_while_their_training_goes_on(slurm, tmp_path):
    flags = ("--only", "ncsnv2", "--set", "iterations=40000", "--set", "snapshot_interval=500")
    process = start(slurm, tmp_path, *flags)
    out = tmp_path / "out"
    wait_for(lambda: list((out / "stages" / "distance").glob("*/result.json")), "a distance")
    assert state_of(slurm, one(out, "train")) == "RUNNING"
    assert not list((out / "stages" / "train").rglob("result.json"))
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130
    # Ctrl-C left them there.
    assert state_of(slurm, one(out, "train")) == "RUNNING"
    code, output, _ = launch(slurm, tmp_path, *flags, "--status")
    assert code == 0
    assert "RUNNING   train digits" in output
    assert "left" in output
    assert "QUEUED    evaluate digits NCSNv2 seed 0" in output
    assert "snapshots of digits/ncsnv2/seed0: " in output
    code, output, _ = launch(slurm, tmp_path, *flags, "--cancel")
    assert code == 0
    wait_for(lambda: not set(ids_of(out).values()) & live(slurm), "an empty queue")
    code, output, _ = launch(slurm, tmp_path, *flags, "--status")
    assert "LOST      train digits" in output
    assert "CANCELLED" in output


@pytest.mark.parametrize("fault", ["kill -9 of the worker", "scancel"])
def test_a_job_that_vanishes_is_named_and_continued(slurm, tmp_path, fault, long_results):
    process = long_run(slurm, tmp_path)
    out = tmp_path / "out"
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    job = one(out, "train")
    if fault == "scancel":
        slurm.run("scancel", job)
    else:
        for pid in slurm.pids(job, tasks=True):
            os.kill(pid, signal.SIGKILL)
    code, said = end(process)
    assert code == 1, said
    assert "ended without a word" in said
    assert ("CANCELLED" if fault == "scancel" else "FAILED") in said
    assert "waits for train-" in said
    assert not set(ids_of(out).values()) & live(slurm)
    code, output, errors = launch(slurm, tmp_path, *LONG)
    assert code == 0, output + errors
    assert results(out) == long_results


def test_a_cancelled_pending_job_is_sent_again(slurm, tmp_path, finished):
    process = start(slurm, tmp_path, "--slurm", "begin=now+5")
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    slurm.run("scancel", one(out, "baseline"))
    code, said = end(process)
    assert code == 1, said
    assert "CANCELLED" in said
    code, output, errors = launch(slurm, tmp_path)
    assert code == 0, output + errors
    assert results(out) == results(finished / "out")


def test_a_killed_launcher_s_jobs_are_watched_by_the_next(slurm, tmp_path, long_results):
    process = long_run(slurm, tmp_path)
    out = tmp_path / "out"
    wait_for(lambda: one(out, REPORT), "the report's job")
    process.kill()
    process.communicate()
    before = ids_of(out)
    code, output, errors = launch(slurm, tmp_path, *LONG)
    assert code == 0, output + errors
    assert ids_of(out) == before
    assert results(out) == long_results


def test_what_waits_for_a_failed_training_goes_too(slurm, tmp_path):
    code, output, _ = launch(slurm, tmp_path, "--only", "ncsnv2", "--set", "learning_rate=1e30")
    assert code == 1
    assert "training diverged" in output
    assert "waits for train-" in output
    assert not set(ids_of(tmp_path / "out").values()) & live(slurm)
    assert (tmp_path / "out" / "report" / "index.html").exists()
    code, output, _ = launch(slurm, tmp_path, "--only", "ncsnv2", "--set", "learning_rate=1e30")
    assert code == 1
    assert "failed before" in output


def test_a_node_that_fails_and_comes_back_costs_no_result(slurm, tmp_path, long_results):
    process = long_run(slurm, tmp_path)
    wait_for(lambda: trained(tmp_path), "a checkpoint")
    for node in NODES:
        slurm.kill_node(node, jobs=True)
        slurm.set_node("down", node)
    for node in NODES:
        slurm.start_node(node)
    code, said = end(process)
    if code == 1:  # what did not go back to the queue by itself is named, and the command goes on
        assert "ended without a word" in said
        code, output, errors = launch(slurm, tmp_path, *LONG)
        said = output + errors
    assert code == 0, said
    assert results(tmp_path / "out") == long_results


def test_what_sbatch_refuses_is_one_line(slurm, tmp_path):
    code, _, errors = launch(slurm, tmp_path, "--slurm", "partition=nowhere")
    assert code == 2
    assert errors.startswith("error: sbatch refused: ")
    assert "partition" in errors
    assert len(errors.strip().splitlines()) == 1
    assert load_submissions(tmp_path / "out") == []


def test_without_slurm_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(launch_command(tmp_path, *FLAGS)[3:]) == 2
    assert "error: --executor slurm: sbatch is not on the PATH" in capsys.readouterr().err
