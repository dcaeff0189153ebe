import dataclasses
import json
import os

import pytest
from places import ROOT
from resolved import whole_jobs
from sleeping import Sleep

from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.executors.inline import run_inline
from ablations.executors.local import local_slots, run_submitted, submitted_world
from ablations.executors.outcome import Outcome, critical_path
from ablations.pipeline.manifest import load_manifest


class Recorder:
    def __init__(self):
        self.events = []

    def started(self, job):
        self.events.append(("started", job.name))

    def finished(self, job):
        self.events.append(("finished", job.name))

    def failed(self, job, message):
        self.events.append(("failed", job.name, message))

    def tick(self):
        pass


@pytest.fixture
def jobs(finished):
    return whole_jobs(load_manifest(finished / "out").units)


def context(out, data_root):
    return Context(
        out=out, data_root=data_root, device="cpu", threads=1, compile=False, sampling_batch=4
    )


def test_training_comes_before_what_needs_it(jobs):
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    for job in jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    assert sorted(job.kind for job in jobs) == ["baseline"] + ["evaluate"] * 3 + ["train"] * 2


def test_the_critical_path_adds_the_longest_chain(jobs):
    length = critical_path(jobs)
    for job in jobs:
        waiting = [j.effort for j in jobs if job.name in j.needs]
        assert length[job.name] == job.effort + max(waiting, default=0.0)


def test_a_failed_job_blocks_what_needs_it_and_nothing_else(jobs, finished, tmp_path):
    broken = jobs[0]
    data_root = finished / "out" / "data"
    # The first training cannot find its images; the other jobs can.
    facts = dataclasses.replace(broken.cell.data, store="absent")
    cell = dataclasses.replace(broken.cell, data=facts)
    jobs = [dataclasses.replace(broken, cell=cell), *jobs[1:]]
    outcome, recorder = Outcome(), Recorder()
    run_inline(jobs, context(tmp_path, data_root), recorder, outcome)
    blocked = {job.name for job in jobs if broken.name in job.needs}
    assert len(blocked) == 2
    assert set(outcome.failed) == {broken.name} | blocked
    assert outcome.done == {job.name for job in jobs} - set(outcome.failed)
    assert all("which failed" in outcome.failed[name] for name in blocked)
    record = read_failure(tmp_path, broken.name)
    assert record["kind"] == "failed"
    assert "absent" in record["message"]
    assert "Traceback" in record["traceback"]


def test_a_jobs_success_removes_its_failure(jobs, finished, tmp_path):
    where = context(tmp_path, finished / "out" / "data")
    job = next(j for j in jobs if j.kind == "baseline")
    path = tmp_path / "jobs" / f"{job.name}.failure.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"kind": "failed", "message": "before"}))
    outcome = Outcome()
    run_inline([job], where, Recorder(), outcome)
    assert outcome.done == {job.name}
    assert read_failure(where.out, job.name) is None


def test_local_slots_share_out_gpus_and_never_time_out_in_minutes():
    slots = local_slots(3, gpus=[0, 1])
    assert [slot["local_visible_gpus"] for slot in slots] == [(0,), (1,), (0,)]
    assert all(slot["timeout_min"] > 60 * 24 for slot in local_slots(2))
    assert all("gpus_per_node" not in slot for slot in local_slots(2))


def test_jobs_of_several_ranks_have_gpus_that_no_other_has():
    slots = local_slots(3, gpus=[0, 1, 2, 3, 4], ranks=2)
    assert [slot["local_visible_gpus"] for slot in slots] == [(0, 1), (2, 3), (0, 1)]
    assert all(slot["gpus_per_node"] == slot["tasks_per_node"] == 2 for slot in slots)
    assert [slot["tasks_per_node"] for slot in local_slots(2, ranks=3)] == [3, 3]


@pytest.mark.parametrize("job_id", ["16324", "16398", "7", "123456_3"])
def test_ranks_meet_at_a_port_that_no_outgoing_connection_takes(monkeypatch, job_id):
    given = {"EXECUTOR": "local", "JOB_ID": job_id, "LOCAL_JOB_ID": job_id, "LOCAL_NTASKS": "2"}
    given |= {"LOCAL_LOCALID": "1", "LOCAL_GLOBALID": "1"}
    for name, value in given.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MASTER_PORT", "")  # to be as it was afterwards
    ports = set()
    for _ in range(2):
        monkeypatch.delenv("MASTER_PORT")
        world = submitted_world()
        assert (world.rank, world.size) == (1, 2)
        ports.add(int(os.environ["MASTER_PORT"]))
        # Whether or not this machine's name resolves.
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    (port,) = ports  # the same in every rank
    assert 20_000 <= port < 32_768


@pytest.mark.slow
def test_jobs_that_are_alone_run_beside_no_other(tmp_path, monkeypatch):
    """Jobs that sleep, in processes of their own or, alone, in this one."""
    names = [f"a{i}" for i in range(3)] + ["timed0", "timed1"]
    jobs = [Sleep(called=name, alone=name.startswith("timed")) for name in names]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}")
    outcome = Outcome()
    where = context(tmp_path, tmp_path)
    run_submitted(jobs, where, Recorder(), outcome, slots=local_slots(2))
    assert outcome.done == set(names) and not outcome.failed
    spans = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    for name, (begin, end, process) in spans.items():
        for other, (other_begin, other_end, _) in spans.items():
            apart = end <= other_begin or other_end <= begin
            assert apart or name == other or not {name, other} & {"timed0", "timed1"}
        assert (process == os.getpid()) == name.startswith("timed")
