import json

import pytest
from resolved import context, part_jobs, whole_jobs

from ablations.executors.slurm.submissions import (
    Entry,
    Submission,
    latest_ids,
    load_submissions,
    save_submission,
    submission_path,
    superseded,
)
from ablations.pipeline.manifest import load_manifest


def test_submissions_read_back_oldest_first(tmp_path):
    snapshot = Entry("snapshot-b-10", "stages/train/b/snapshot-0000010.pt", "train-b")
    entries = (Entry("train-a"), snapshot)
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
    cells = load_manifest(finished / "out").units
    where = context(finished / "out")
    digests = {job.name: job.cell.train_stage().digest for job in whole_jobs(cells)}
    jobs = part_jobs(cells)
    assert len(jobs) == len({job.name for job in jobs}) == 3 * 2
    for job in jobs:
        (train,) = job.needs
        path = f"stages/train/{digests[train]}/snapshot-{job.iteration:07d}.pt"
        assert Entry.of(job, where) == Entry(job.name, path, train)
    assert Entry.of(whole_jobs(cells)[0], where) == Entry(whole_jobs(cells)[0].name)


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    submission = Submission(entries=(Entry("snapshot-b-10", "x", "train-b"),), slurm_id="17")
    save_submission(submission, tmp_path)
    path = submission_path(tmp_path, submission.token)
    record = json.loads(path.read_text())
    # What a job of an earlier version, which may wait in the queue still, makes of a record.
    assert [(str(n), str(t), int(i)) for n, t, i in record["entries"]] == [("snapshot-b-10", "", 0)]
    for new in ("sha256", "starts"):
        del record[new]
    record["entries"] = [["snapshot-b-10", "0123", 10]]
    path.write_text(json.dumps(record))
    (read,) = load_submissions(tmp_path)
    assert read.entries == (Entry("snapshot-b-10"),)


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"format": 1})])
def test_a_damaged_record_is_named(tmp_path, damage):
    submission = Submission(entries=(Entry("a"),))
    save_submission(submission, tmp_path)
    path = submission_path(tmp_path, submission.token)
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"scorekit-.*|incompatible version"):
        load_submissions(tmp_path)
