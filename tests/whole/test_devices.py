"""Jobs on several devices: the same results, and no process that waits for a dead one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import forked
import numpy as np
import pandas as pd
import pytest
from ranks import exit_codes, run_ranks, start_ranks
from resolved import whole_jobs
from tiny_grid import launch_command

from ablations.engine import run
from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.engine.stages import Stage, StageStore
from ablations.launch import main
from ablations.pipeline import sampling
from ablations.pipeline.manifest import load_manifest
from scorekit.checkpoints.tensors import load_tensors
from scorekit.files import read_json
from scorekit.runtime.interruption import Stopped

MEASURED = ("distance", "features", "sample", "quality")


def context(out, world=None, **changes):
    plain = Context(
        out=out, data_root=out / "data", device="cpu", threads=1, compile=False, sampling_batch=2
    )
    return dataclasses.replace(plain, **changes, **({} if world is None else {"world": world}))


def evaluation_of(out):
    return next(
        job
        for job in whole_jobs(load_manifest(out).units)
        if job.kind == "evaluate" and job.cell.variant.name == "NCSNv2"
    )


def run_as(world, out, name, stops=False):
    """Run a job of a grid as one of its ranks; with ``stops``, rank 1 asks to stop at once."""
    job = next(job for job in whole_jobs(load_manifest(out).units) if job.name == name)
    if not stops:
        run.run_job(job, context(out, world))
        return
    with pytest.raises(Stopped):
        run.run_job(job, context(out, world), stop=lambda: world.rank == 1)


def run_looking_alone(world, out, name):
    """Run a job; only rank 0 may look whether files are whole, and set them aside."""

    def look(path):
        raise AssertionError(f"rank {world.rank} looks at {path}")

    if not world.is_main:
        sampling.find_tensors = look
    run_as(world, out, name)


def unmeasured(folder, finished):
    """A copy of the finished grid with the weights of all trainings and nothing of them."""
    shutil.copytree(finished / "out", folder)
    for kind in MEASURED:
        shutil.rmtree(folder / "stages" / kind)
    shutil.rmtree(folder / "data" / "reference")
    return folder


def measured(out):
    """The bytes of every sample and feature, and the results of every measurement."""
    found = {}
    for root in (out / "stages", out / "data" / "reference"):
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(out))
            if path.suffix == ".npy" and "train" not in path.parts:
                found[name] = path.read_bytes()
            if path.name == "result.json" and path.parent.parent.name in ("distance", "quality"):
                found[name] = read_json(path)["result"]
    return found


@pytest.fixture(scope="module")
def expected(finished, tmp_path_factory):
    """What one process measures."""
    out = unmeasured(tmp_path_factory.mktemp("alone") / "out", finished)
    run.run_job(evaluation_of(out), context(out))
    found = measured(out)
    assert any("sample" in name for name in found)
    assert any("features" in name for name in found)
    return found


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_same_weights_give_the_same_bytes_on_any_number_of_ranks(
    finished, expected, tmp_path, size
):
    """Five ranks are more than the two batches of a stage."""
    out = unmeasured(tmp_path / "out", finished)
    job = evaluation_of(out)
    codes = exit_codes(start_ranks(size, run_as, out, job.name, grouped=False))
    assert codes == [0] * size
    assert measured(out) == expected
    assert job.is_done(context(out))
    assert not list((out / "stages").rglob("chunk-*"))


def test_ranks_go_on_from_what_one_process_drew(finished, expected, tmp_path):
    out = unmeasured(tmp_path / "out", finished)
    job = evaluation_of(out)
    count = iter(range(100))
    with pytest.raises(Stopped):
        run.run_job(job, context(out), stop=lambda: next(count) >= 5)
    assert len(list((out / "stages").rglob("chunk-*"))) == 1
    assert exit_codes(start_ranks(2, run_as, out, job.name, grouped=False)) == [0, 0]
    assert measured(out) == expected


def test_ranks_mend_a_damaged_snapshot_together(finished, expected, tmp_path):
    out = unmeasured(tmp_path / "out", finished)
    job = evaluation_of(out)
    damaged = sorted(
        StageStore(out / "stages").directory(job.cell.train_stage()).glob("snapshot-*.pt")
    )
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    ranks = start_ranks(3, run_looking_alone, out, job.name, grouped=False)
    assert exit_codes(ranks) == [0, 0, 0]
    assert len(damaged) == 2
    assert all(load_tensors(path) for path in damaged)
    assert measured(out) == expected


def test_a_stop_of_one_rank_stops_all_without_a_failure(finished, expected, tmp_path):
    out = unmeasured(tmp_path / "out", finished)
    job = evaluation_of(out)
    assert exit_codes(start_ranks(3, run_as, out, job.name, True, grouped=False)) == [0, 0, 0]
    assert read_failure(out, job.name) is None
    assert not job.is_done(context(out))


def test_the_baseline_is_one_ranks_work(finished, tmp_path):
    out = unmeasured(tmp_path / "out", finished)
    shutil.rmtree(out / "stages" / "baseline")
    job = next(job for job in whole_jobs(load_manifest(out).units) if job.kind == "baseline")
    assert exit_codes(start_ranks(2, run_as, out, job.name, grouped=False)) == [0, 0]
    assert job.is_done(context(out))


# Stages

STAGE = Stage("train", {"width": 2})


def run_stage(world, root, raising=None):
    def execute(directory):
        (directory / f"rank-{world.rank}").write_text("ran")
        if world.rank == raising:
            raise ValueError("only here")
        path = directory / "data.bin"
        if world.is_main:
            path.write_bytes(b"result")
        return {"value": 7 + world.rank}, [path]

    assert StageStore(root, world=world).run(STAGE, execute) == {"value": 7}


def ran(root):
    return sorted(path.name for path in StageStore(root).directory(STAGE).glob("rank-*"))


@pytest.mark.parametrize("damage", [None, "flipped", "gone"])
def test_ranks_agree_whether_there_is_work(tmp_path, damage):
    run_ranks(3, run_stage, tmp_path)
    assert ran(tmp_path) == ["rank-0", "rank-1", "rank-2"]
    directory = StageStore(tmp_path).directory(STAGE)
    for path in directory.glob("rank-*"):
        path.unlink()
    if damage == "flipped":
        (directory / "data.bin").write_bytes(b"resulT")
    elif damage == "gone":
        (directory / "data.bin").unlink()
    run_ranks(3, run_stage, tmp_path)
    assert ran(tmp_path) == ([] if damage is None else ["rank-0", "rank-1", "rank-2"])
    assert StageStore(tmp_path).result(STAGE) == {"value": 7}


@pytest.mark.parametrize("raising", [0, 2])
def test_a_rank_that_raises_in_a_stage_ends_all_and_the_stage_is_not_done(tmp_path, raising):
    assert exit_codes(start_ranks(3, run_stage, tmp_path, raising), timeout=60) == [1, 1, 1]
    assert StageStore(tmp_path).result(STAGE) is None
    run_ranks(3, run_stage, tmp_path)
    assert StageStore(tmp_path).result(STAGE) == {"value": 7}


def test_the_first_failure_is_the_one_on_record(finished, tmp_path):
    """The images are gone: each rank may say so, and none that another rank died."""
    out = unmeasured(tmp_path / "out", finished)
    shutil.rmtree(out / "stages" / "train")
    shutil.move(out / "data" / "digits-v1", out / "data" / "elsewhere")
    job = next(job for job in whole_jobs(load_manifest(out).units) if job.kind == "train")
    assert exit_codes(start_ranks(2, run_as, out, job.name, grouped=False)) == [1, 1]
    failure = read_failure(out, job.name)
    assert failure["kind"] == "failed"
    assert "digits-v1" in failure["message"]


# The launcher


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--gpus", "2", "--executor", "inline"], "--executor inline is one process"),
        (["--gpus", "3", "--set", "batch_size=2"], "accumulation = 1 on 3 rank(s) needs a batch"),
        (["--set", "accumulation=0"], "accumulation = 0 must be at least 1"),
        (["--set", "accumulation=33"], "of at least 33 images; batch_size = 32"),
        (["--set", "accumulation=17", "--gpus", "2"], "of at least 34 images; batch_size = 32"),
        (
            ["--grid", "finite-difference", "--gpus", "2"],
            "--gpus means nothing to the study finite-difference",
        ),
    ],
)
def test_bad_numbers_are_one_line_before_any_work(flags, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--out", str(out), "--budget", "quick", "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (out / "stages").exists()


@pytest.mark.slow
def test_a_grid_on_two_ranks_has_what_one_has(finished, tmp_path):
    flags = ("--gpus", "2", "--set", "accumulation=2", "--only", "ncsnv2", "--device", "cpu")
    arguments, log, out = launch_command(tmp_path, *flags)[3:], tmp_path / "log", tmp_path / "out"
    assert forked.wait(forked.start(forked.sketcher, arguments, log=log)) == 0, log.read_text()
    assert "local executor" in log.read_text()

    def files(root):
        return {
            path.relative_to(root)
            for path in (root / "stages").rglob("*")
            if path.suffix in (".npy", ".npz") or path.name.startswith("snapshot-")
        }

    final = {name for name in files(out) if not {"sample", "features"} & {*name.parts}}
    stages = {name.parent for name in final}
    assert any("train" in stage.parts for stage in stages)
    assert final == {name for name in files(finished / "out") if name.parent in stages}
    tables = [
        pd.read_csv(folder / "report" / "tables" / "ablation.csv").query("variant == 'NCSNv2'")
        for folder in (out, finished / "out")
    ]
    assert len(tables[0])
    for column in ("variant", "weights", "denoise", "status", "n", "budget"):
        assert list(tables[0][column]) == list(tables[1][column])
    # After six steps, rounding has grown little: images differ by a level here and there.
    pairs = [
        (np.load(path).astype(int), np.load(other).astype(int))
        for path in (out / "stages" / "sample").rglob("*.npy")
        if (other := finished / "out" / path.relative_to(out)).exists()
    ]
    assert pairs
    assert all(np.abs(ours - theirs).max() <= 2 for ours, theirs in pairs)
    record = json.loads(next((out / "stages" / "train").rglob("result.json")).read_text())
    assert record["result"]["conditions"]["device"].startswith("2 × ")


@pytest.mark.slow
def test_a_killed_rank_ends_its_job_in_seconds_and_the_same_command_continues(tmp_path):
    settings = ("--set", "iterations=60", "--set", "snapshot_interval=30")
    flags = ("--gpus", "2", "--workers", "1", "--only", "ncsnv2", "--device", "cpu", *settings)
    arguments, log, out = launch_command(tmp_path, *flags)[3:], tmp_path / "log", tmp_path / "out"
    process = forked.start(forked.launcher, arguments, log=log, fault=forked.NoReport())
    deadline = time.monotonic() + 300
    while not list(out.rglob("checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    listed = subprocess.run(
        ["pgrep", "-f", f"submitit.core._submit.*{tmp_path}"], capture_output=True, text=True
    )
    ranks = {
        read_environment(pid)["SUBMITIT_LOCAL_GLOBALID"]: int(pid) for pid in listed.stdout.split()
    }
    assert set(ranks) == {"0", "1"}
    os.kill(ranks["1"], signal.SIGKILL)
    killed = time.monotonic()
    while process_runs(ranks["0"]) and time.monotonic() - killed < 60:
        time.sleep(0.05)
    assert not process_runs(ranks["0"])  # of an hours' timeout
    assert forked.wait(process) == 1
    # Told by the watch or by a collective, whichever comes first.
    assert "a rank died" in log.read_text()
    log.unlink()
    process = forked.start(forked.launcher, arguments, log=log, fault=forked.NoReport())
    assert forked.wait(process) == 0, log.read_text()
    assert "failed before" not in log.read_text()
    # That ranks go on bit for bit is tests/scorekit/runtime/test_distributed.py's.
    assert measured(out)


def read_environment(pid: str) -> dict[str, str]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = file.read().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def process_runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
