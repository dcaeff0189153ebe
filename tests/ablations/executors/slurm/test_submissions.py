import json

import pytest

from ablations.engine.manifest import load_manifest
from ablations.executors.slurm.submissions import (
    Entry,
    Submission,
    latest_ids,
    load_submissions,
    save_submission,
    submission_path,
    superseded,
)
from ablations.pipeline.jobs import plan_jobs, snapshot_jobs


def test_submissions_read_back_oldest_first(tmp_path):
    entries = (Entry("train-a"), Entry("snapshot-b-10", "0123", 10))
    later = Submission(entries=entries, slurm_id="17", dependency="afterok:3", created=2.0)
    earlier = Submission(entries=entries[:1], created=1.0)
    for submission in (later, earlier):
        save_submission(submission, tmp_path)
    assert load_submissions(tmp_path) == [earlier, later]


def test_ids_are_those_of_the_latest_submission_that_arrived():
    a, b = Entry("a"), Entry("b")
    submissions = [
        Submission(entries=(a, b), slurm_id="1"),
        Submission(entries=(b,), slurm_id="2"),  # one alone is no array
        Submission(entries=(a,)),
    ]
    assert latest_ids(submissions) == {"a": "1_0", "b": "2"}


def test_what_was_sent_again_as_a_whole_is_superseded():
    a, b = Entry("a"), Entry("b")
    first = Submission(entries=(a, b), slurm_id="1")
    again = Submission(entries=(b,), slurm_id="2")
    lost = Submission(entries=(a, b))
    assert superseded([first, again]) == []
    last = Submission(entries=(a,), slurm_id="3")
    assert superseded([first, again, last, lost]) == [first]


def test_jobs_of_snapshots_know_their_training(finished):
    cells = load_manifest(finished / "out").cells
    digests = {job.name: job.cell.train_stage().digest for job in plan_jobs(cells)}
    jobs = snapshot_jobs(cells)
    assert len(jobs) == len({job.name for job in jobs}) == 3 * 2
    for job in jobs:
        (train,) = job.needs
        assert Entry.of(job) == Entry(job.name, digests[train], job.iteration)
    assert Entry.of(plan_jobs(cells)[0]).train == ""


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"format": 1})])
def test_a_damaged_record_is_named(tmp_path, damage):
    submission = Submission(entries=(Entry("a"),))
    save_submission(submission, tmp_path)
    path = submission_path(tmp_path, submission.token)
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"scorekit-.*|incompatible version"):
        load_submissions(tmp_path)
