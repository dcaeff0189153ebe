from pathlib import Path

import numpy as np
import pytest

from scorekit.runtime import machine
from scorekit.runtime.machine import PeakMemory, conditions, default_threads, usable_cores

MIB = 2**20


def peak_with(n_bytes: int) -> int:
    """Hold and free so many bytes, as in one stage, and return its peak."""
    peak = PeakMemory("cpu")
    np.ones(n_bytes, np.uint8)
    found = peak.bytes()
    if found is None:
        pytest.skip("this system does not let the mark be set back")
    return found


def test_a_stage_does_not_inherit_the_peak_of_another():
    first, large, last = (peak_with(n * MIB) for n in (1, 400, 1))
    assert large - first == pytest.approx(400 * MIB, abs=20 * MIB)
    assert last - first == pytest.approx(0, abs=20 * MIB)


def test_memory_that_was_freed_in_small_pieces_is_not_counted():
    before = peak_with(MIB)
    pieces = [bytes(50_000) for _ in range(4000)]  # on the heap, which keeps what is freed
    keep = bytes(50_000)  # behind them: the heap cannot shrink
    del pieces
    assert peak_with(MIB) - before < 50 * MIB
    assert keep


def test_where_the_mark_cannot_be_set_back_there_is_no_number(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert PeakMemory("cpu").bytes() is None
    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    monkeypatch.setattr(machine, "_resident", {"VmHWM": 2**30, "VmRSS": 2**28}.__getitem__)
    assert PeakMemory("cpu").bytes() is None
    found = conditions("cpu", threads=1, compile=False, peak_memory=None)
    assert found["peak_memory_bytes"] is None
    assert machine.cpu_name() in found["device"]


@pytest.mark.parametrize(
    ("files", "quotas"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, {1.5}),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, {3.0}),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, set()),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/1\n2:cpuset:/\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            {2.0},
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            set(),
        ),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "nonsense"}, set()),
        ({}, set()),
    ],
)
def test_a_container_s_quota_is_found(tmp_path, files, quotas):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert set(machine._quotas(tmp_path)) == quotas


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (2.7, 2), (1e9, 6)])
def test_no_more_cores_are_used_than_a_container_has(monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(machine, "_quotas", lambda _: [quota])
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("asked", "threads"),
    [(None, 6), ("", 6), ("3", 3), ("12", 12), ("2,1", 2), ("0", 6), ("-1", 6), ("all", 6)],
)
def test_threads_are_those_that_the_environment_asks_for(monkeypatch, asked, threads):
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads() == threads
