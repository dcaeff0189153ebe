"""An output folder does not grow without bound, however often its jobs are run."""

import os

import pytest

from ablations.executors.leftovers import LOG_BYTES, prune_logs, remove_leftovers


def attempt(folder, name, age_s, log=b"line\n"):
    """The files that submitit makes for a submission, so many seconds old."""
    for suffix in ("submitted.pkl", "0_result.pkl", "0_log.out", "0_log.err", "submission.sh"):
        path = folder / f"{name}_{suffix}"
        path.write_bytes(log)
        os.utime(path, (1e9 - age_s, 1e9 - age_s))


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


def ids(folder):
    return {path.name.split("_0_")[0].split("_sub")[0] for path in folder.iterdir()}


def test_the_newest_attempts_are_kept_and_those_that_may_still_run(logs):
    for number in range(100):
        attempt(logs, str(number), age_s=number)
    attempt(logs, "7000_3", age_s=10**6)  # an element of an array that is pending
    (logs / "notes.txt").touch()
    prune_logs(logs, keep=10, live={"7000", "55"})
    assert ids(logs) == {*map(str, range(10)), "55", "7000_3", "notes.txt"}
    prune_logs(logs, keep=10)
    assert ids(logs) == {*map(str, range(10)), "notes.txt"}


def test_a_long_log_of_an_attempt_that_is_over_keeps_its_end(logs):
    lines = b"".join(b"line %07d\n" % i for i in range(200_000))
    attempt(logs, "1", 0, lines)
    attempt(logs, "2", 0, lines)
    prune_logs(logs, keep=10, live={"2"})
    cut = (logs / "1_0_log.out").read_bytes()
    assert len(cut) <= LOG_BYTES and lines.endswith(cut) and cut.startswith(b"line ")
    assert (logs / "1_0_result.pkl").read_bytes() == lines
    assert (logs / "2_0_log.out").read_bytes() == lines


def test_jobs_run_again_and_again_stay_within_the_bound(logs, tmp_path):
    for number in range(60):
        attempt(logs, str(1000 + number), age_s=100 - number)
        remove_leftovers(tmp_path, n_jobs=2)
    assert ids(logs) == {str(1000 + number) for number in range(54, 60)}


def test_only_old_unfinished_files_are_removed(tmp_path):
    (tmp_path / "jobs").mkdir()
    for path in (tmp_path / ".grid.json.1-ab.tmp", tmp_path / "jobs" / ".x.progress.json.2-cd.tmp"):
        path.touch()
        os.utime(path, (1e9, 1e9))
    new = tmp_path / "jobs" / ".y.progress.json.3-ef.tmp"
    new.touch()
    remove_leftovers(tmp_path, n_jobs=1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [new]
