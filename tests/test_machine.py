from pathlib import Path

import numpy as np
import pytest

from scorekit import machine
from scorekit.machine import PeakMemory, conditions

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
