"""Ten thousand finished cells are collected in bounded memory, and each file read once."""

import multiprocessing
import resource
import sys
from pathlib import Path

import pytest

from ablations.studies.ncsnv2.collect import MAX_LOSSES, collect
from bench.finished import write_finished


def peak_growth(out: str, pipe) -> None:
    """Send the bytes by which collecting raises the peak of a process that has all imported."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    results = collect(Path(out))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pipe.send((after - before, len(results.cells), len(results.losses), results.run["complete"]))


@pytest.mark.slow
def test_ten_thousand_finished_cells_are_collected_in_500_megabytes(tmp_path):
    write_finished(tmp_path / "out", 10_000)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=peak_growth, args=(str(tmp_path / "out"), sender))
    process.start()
    growth, n_cells, n_losses, complete = receiver.recv()
    process.join()
    assert (n_cells, complete) == (10_000, True)
    assert 1_000_000 < n_losses <= MAX_LOSSES + 100_000
    assert growth < 500e6, growth


def test_every_result_is_read_once(tmp_path, monkeypatch):
    from ablations.engine import stages

    cells = write_finished(tmp_path / "out", 8)
    read = []
    original = stages.read_sealed_json
    monkeypatch.setattr(
        stages, "read_sealed_json", lambda path: read.append(path) or original(path)
    )
    results = collect(tmp_path / "out")
    assert len(results.cells) == len(cells) == 8
    assert set(results.cells["status"]) == {"done"}
    assert len(read) == len(set(read)) >= 8 * 8
