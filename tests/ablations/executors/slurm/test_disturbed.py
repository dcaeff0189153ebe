"""Grids on a real Slurm that are disturbed: what survives, and what is said of the rest."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from slurm_cluster import NODES
from slurm_grids import (
    ONE,
    give_up,
    ids_of,
    launch,
    live,
    one,
    restarts,
    start,
    undisturbed,
    wait_for,
)
from tiny_grid import results

pytestmark = pytest.mark.slow


LONG = (*ONE, "--set", "iterations=80", "--set", "snapshot_interval=40")

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
