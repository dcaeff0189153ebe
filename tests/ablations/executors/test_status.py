import time

import pytest
from resolved import part_jobs, whole_jobs

from ablations.engine.context import Context
from ablations.engine.failures import record_failure
from ablations.engine.progress import progress_path
from ablations.engine.state import job_state
from ablations.executors.slurm.queue import QueuedJob, SlurmError
from ablations.executors.slurm.submissions import Entry, Submission, save_submission
from ablations.executors.status import describe_status
from ablations.pipeline.manifest import load_manifest
from scorekit.files import write_json


def context(out):
    return Context(
        out=out, data_root=out / "data", device="cpu", threads=1, compile=False, sampling_batch=4
    )


@pytest.fixture
def jobs(finished):
    return whole_jobs(load_manifest(finished / "out").units)


def write_progress(out, job, **more):
    path = progress_path(out, job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    now = time.time()
    record = {"fraction": 0.5, "text": "half way", "updated": now}
    record |= {"began": now, "began_fraction": 0.5}
    write_json(path, record | more)


def test_states_of_jobs_come_from_files(jobs, finished, tmp_path):
    assert {job_state(job, context(finished / "out"))[0] for job in jobs} == {"done"}
    assert {job_state(job, context(tmp_path)) for job in jobs} == {("planned", "")}


def test_what_is_left_follows_from_this_process_s_speed(jobs, tmp_path):
    now = time.time()
    write_progress(tmp_path, jobs[0], updated=now, began=now - 600, began_fraction=0.4)
    # A tenth in ten minutes: half of it takes fifty.
    assert job_state(jobs[0], context(tmp_path)) == (
        "running",
        "50 %, half way, about 50 min left",
    )
    write_progress(tmp_path, jobs[0], updated=now - 3600)
    state, detail = job_state(jobs[0], context(tmp_path))
    assert (state, detail) == ("planned", "stopped at 50 %; will go on from there")


@pytest.fixture
def slurm(monkeypatch):
    """What squeue and sacct would say."""
    queue: dict[str, QueuedJob] = {}
    monkeypatch.setattr("ablations.executors.slurm.grid.queued_jobs", lambda: queue)
    monkeypatch.setattr(
        "ablations.executors.slurm.grid.ended_states", lambda ids: {"7_2": "OUT_OF_MEMORY"}
    )
    return queue


def test_files_and_slurm_together_give_the_state(jobs, finished, tmp_path, slurm):
    assert len(jobs) == 6
    entries = tuple(Entry(job.name) for job in jobs[:5])
    save_submission(Submission(entries=entries, slurm_id="7"), tmp_path)
    slurm["7_0"] = QueuedJob("PENDING", "Dependency")
    slurm["7_1"] = QueuedJob("RUNNING", "None")
    write_progress(tmp_path, jobs[1])
    log = tmp_path / "logs" / "7_2_0_log.out"
    log.parent.mkdir()
    log.write_text("one\ntwo\n\nthree\nfour\n")
    try:
        raise RuntimeError("no luck")
    except RuntimeError as error:
        record_failure(tmp_path, jobs[3].name, error)
    lines = describe_status(jobs, context(tmp_path)).splitlines()
    assert lines[0] == f"QUEUED    {jobs[0].title}: job 7_0, Dependency"
    assert lines[1] == f"RUNNING   {jobs[1].title}: job 7_1, 50 %, half way"
    assert lines[2].startswith(f"LOST      {jobs[2].title}: Slurm job 7_2 ended without a word")
    assert "OUT_OF_MEMORY" in lines[2]
    assert lines[2].endswith("two | three | four")
    assert lines[3] == f"FAILED    {jobs[3].title}: no luck"
    assert "not in Slurm's accounting" in lines[4]
    assert lines[5] == f"PLANNED   {jobs[5].title}"


def test_parts_are_counted_by_the_job_they_are_of(finished, tmp_path, slurm):
    cells = load_manifest(finished / "out").units
    jobs = part_jobs(cells[:1])
    submission = Submission(
        entries=tuple(Entry.of(job, context(tmp_path)) for job in jobs), slurm_id="9"
    )
    save_submission(submission, tmp_path)
    slurm["9_0"] = QueuedJob("RUNNING", "None")
    slurm["9_1"] = QueuedJob("PENDING", "Dependency")
    text = describe_status([*whole_jobs(cells[:1]), *jobs], context(tmp_path))
    (evaluation,) = (job for job in whole_jobs(cells[:1]) if job.kind == "evaluate")
    assert f"parts of {evaluation.title}: 1 queued, 1 running" in text
    assert text.count("\n") == 3


def test_without_an_answer_of_slurm_the_files_speak(jobs, tmp_path, monkeypatch):
    def no_answer():
        raise SlurmError("squeue: unable to contact the controller")

    save_submission(Submission(entries=(Entry(jobs[0].name),), slurm_id="7"), tmp_path)
    monkeypatch.setattr("ablations.executors.slurm.grid.queued_jobs", no_answer)
    lines = describe_status(jobs, context(tmp_path)).splitlines()
    assert lines[0].startswith("Slurm does not answer; from files alone: squeue: unable")
    assert all(line.startswith("PLANNED") for line in lines[1:])
