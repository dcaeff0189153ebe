"""What Slurm's clients say, as they say it; that they say so is tested in test_slurm.py."""

import time

import pytest

from ablations.executors.slurm.queue import (
    QueuedJob,
    SlurmError,
    ended_states,
    jobs_named,
    largest_array,
    queued_jobs,
    require_slurm,
)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Put a client that prints something, and fails or not, on the PATH; nothing else is there."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, prints: str, *, fails: str = "") -> None:
        path = tmp_path / name
        ending = f"echo '{fails}' >&2; exit 1" if fails else ""
        path.write_text(f"#!/bin/sh\nprintf '%s' '{prints}'\n{ending}\n")
        path.chmod(0o755)

    return make


def test_the_queue_has_waiting_and_running_jobs_and_elements_of_arrays(client):
    client(
        "squeue",
        "7|N/A|RUNNING|None\n8|0|PENDING|Dependency\n8|1|COMPLETING|None\n9|N/A|COMPLETED|None\n",
    )
    queue = queued_jobs()
    assert queue == {
        "7": QueuedJob("RUNNING", "None"),
        "8_0": QueuedJob("PENDING", "Dependency"),
        "8_1": QueuedJob("COMPLETING", "None"),
    }
    assert [queue[job].runs for job in ("7", "8_0", "8_1")] == [True, False, True]


@pytest.mark.parametrize(
    ("reason", "is_stuck"),
    [
        *((reason, True) for reason in ("PartitionTimeLimit", "JobHeldUser", "JobHeldAdmin")),
        *((reason, True) for reason in ("AssocMaxWallDurationPerJobLimit", "BadConstraints")),
        *((reason, True) for reason in ("QOSMaxCpuPerJobLimit", "launch failed requeued held")),
        *((reason, False) for reason in ("Dependency", "Resources", "Priority", "BeginTime")),
        *((reason, False) for reason in ("QOSMaxJobsPerUserLimit", "JobArrayTaskLimit", "None")),
        ("ReqNodeNotAvail, UnavailableNodes:n1", False),
    ],
)
def test_what_only_a_person_changes_is_no_wait(reason, is_stuck):
    assert QueuedJob("PENDING", reason).is_stuck is is_stuck
    assert not QueuedJob("RUNNING", reason).is_stuck


@pytest.mark.parametrize(("said", "size"), [("1001", 1001), ("0", 1)])
def test_an_array_has_as_many_jobs_as_the_cluster_takes(client, said, size):
    client(
        "scontrol", f"MailProg = /bin/mail\nMaxArraySize            = {said}\nMaxDBDMsgs = 20000\n"
    )
    assert largest_array() == size


def test_ends_are_told_one_by_one_where_slurm_tells_of_a_range(client):
    client(
        "sacct",
        "7|COMPLETED\n8_3|OUT_OF_MEMORY\n8_[0,5-6,10-14:2%2]|CANCELLED by 0\n9_[0-1,...]|FAILED\n",
    )
    assert ended_states(["7", "8_0"]) == {
        "7": "COMPLETED",
        "8_3": "OUT_OF_MEMORY",
        **dict.fromkeys(("8_0", "8_5", "8_6", "8_10", "8_12", "8_14"), "CANCELLED by 0"),
        **dict.fromkeys(("9_0", "9_1"), "FAILED"),
    }
    assert ended_states([]) == {}


def test_a_name_is_looked_for_among_waiting_and_ended_jobs(client):
    client("squeue", "8\n8\n")
    client("sacct", "7_0\n7_1\n")
    assert jobs_named("scorekit-0") == {"7", "8"}


@pytest.mark.parametrize(
    "says",
    [
        None,
        "Slurm accounting storage is disabled",
        "You are not running a supported accounting_storage plugin",
        "error: Unable to contact slurmdbd: Connection refused",
    ],
)
def test_without_accounting_only_the_queue_knows(client, says):
    client("squeue", "8\n")
    if says is not None:
        client("sacct", "", fails=says)
    began = time.monotonic()
    assert jobs_named("scorekit-0") == {"8"}
    with pytest.raises(SlurmError, match="sacct"):
        ended_states(["8"])
    assert time.monotonic() - began < 5


def test_clients_are_asked_without_the_user_s_formats_and_clusters(client, tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\n/usr/bin/env > environment\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    foreign = (
        "SQUEUE_FORMAT",
        "SQUEUE_STATES",
        "SACCT_FORMAT",
        "SLURM_CLUSTERS",
        "SLURM_MEM_PER_CPU",
    )
    for name in (*foreign, "SLURM_CONF", "OTHER"):
        monkeypatch.setenv(name, "x")
    queued_jobs()
    seen = {line.split("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert seen.isdisjoint(foreign)
    assert {"SLURM_CONF", "OTHER"} <= seen


def test_what_slurm_refuses_or_lacks_is_its_own_words(client):
    with pytest.raises(SlurmError, match="sbatch is not on the PATH"):
        require_slurm()
    with pytest.raises(SlurmError, match="squeue is not on the PATH"):
        queued_jobs()
    client("squeue", "", fails="squeue: error: Invalid user")
    with pytest.raises(SlurmError, match="squeue: squeue: error: Invalid user"):
        queued_jobs()
