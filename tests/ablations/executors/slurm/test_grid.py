"""Grids on a real Slurm: what is sent and watched, and what the user is told."""

import itertools
import os
import re
import signal
import time
from pathlib import Path

import pytest
from resolved import part_jobs, whole_jobs
from slurm_grids import (
    FLAGS,
    LATER,
    ONE,
    TWO,
    ids_of,
    launch,
    let_start,
    live,
    one,
    start,
    state_of,
    times_submitted,
    undisturbed,
    wait_for,
)
from tiny_grid import launch_command, results

from ablations.executors.slurm import sender
from ablations.executors.slurm.grid import SlurmGrid, cancel_all, live_ids
from ablations.executors.slurm.submissions import REPORT, load_submissions
from ablations.launch import main
from ablations.pipeline.manifest import load_manifest

pytestmark = pytest.mark.slow


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
    """A grid that ended on the cluster, with its report, and what the launcher said."""
    folder = tmp_path_factory.mktemp("slurm")
    return folder, *start(slurm, folder, *TWO, "--slurm", "partition=test", report=True).end()


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


def test_what_dead_launchers_sent_is_completed_and_watched_by_the_next(
    slurm, tmp_path, monkeypatch, one_result
):
    """One died before its job's pickle was in place, the next while it watched."""
    out = tmp_path / "out"

    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("submitit.core.utils.JobPaths.move_temporary_file", die)
        with pytest.raises(Died):
            run_here(slurm, patch, tmp_path, *ONE, *LATER)
    for last in (False, True):
        process = start(slurm, tmp_path, *ONE, *LATER)
        wait_for(lambda of=process: "jobs in Slurm" in of.log.read_text(), "jobs in Slurm")
        if not last:
            process.process.kill()
            process.process.join()
            before = ids_of(out)
    let_start(slurm, out)
    code, said = process.end()
    assert code == 0, said
    assert ids_of(out) == before
    assert set(times_submitted(out).values()) == {1}
    assert results(out) == one_result


def test_snapshots_are_measured_while_their_training_goes_on(slurm, tmp_path):
    flags = (*ONE, "--workers", "1", "--set", "iterations=4000", "--set", "snapshot_interval=100")
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


def test_a_cancelled_pending_job_is_sent_again(slurm, tmp_path):
    out = tmp_path / "out"
    process = start(slurm, tmp_path, *ONE, *LATER)
    wait_for(lambda: one(out, REPORT), "the report's job")
    before = ids_of(out)
    (name,) = (name for name in before if name.startswith("baseline"))
    slurm.run("scancel", before[name])
    wait_for(lambda: "CANCELLED" in process.log.read_text(), "a word of it")
    process.process.kill()
    process.process.join()
    process = start(slurm, tmp_path, *ONE, *LATER)
    wait_for(lambda: "jobs in Slurm" in process.log.read_text(), "jobs in Slurm")
    process.process.kill()
    process.process.join()
    after = ids_of(out)
    assert live(slurm) == set(after.values())
    # The report waits for the new one too.
    assert {job for job in before if after[job] != before[job]} == {name, REPORT}
    assert times_submitted(out)[name] == 2 and after.keys() == before.keys()
    assert launch(slurm, tmp_path, "--cancel")[0] == 0


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
