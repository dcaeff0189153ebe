import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scorekit.runtime.memory import BatchTooLarge, ShrinkingBatch


def fitting(most: int):
    """Return work on a batch, for which there is memory up to a size."""

    def work(first: int, last: int) -> list[int]:
        if last - first > most:
            raise torch.OutOfMemoryError("out of memory")
        return list(range(first, last))

    return work


@given(n=st.integers(0, 60), size=st.integers(1, 80), most=st.integers(1, 80))
def test_everything_is_done_once_and_in_order_whatever_fits(n, size, most):
    batch = ShrinkingBatch(size, "work")
    parts = batch.run(n, fitting(most))
    assert [i for part in parts for i in part] == list(range(n))
    assert batch.size == size or 2 * batch.size + 1 > most
    assert 1 <= batch.size <= size


def test_a_smaller_batch_is_told_with_both_sizes_and_stays(caplog):
    batch = ShrinkingBatch(8, "sampling")
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        assert [len(part) for part in batch.run(10, fitting(3))] == [2, 2, 2, 2, 2]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "sampling: out of memory with a batch of 8; going on with batches of 4",
        "sampling: out of memory with a batch of 4; going on with batches of 2",
    ]
    caplog.clear()
    assert [len(part) for part in batch.run(3, fitting(3))] == [2, 1]
    assert not caplog.records


def test_what_was_done_is_not_done_again():
    seen = []

    def work(first: int, last: int) -> None:
        if first >= 4 and last - first > 1:
            raise torch.OutOfMemoryError("out of memory")
        seen.extend(range(first, last))

    ShrinkingBatch(4, "work").run(7, work)
    assert seen == list(range(7))


def test_one_that_does_not_fit_is_one_clear_line():
    with pytest.raises(BatchTooLarge, match=r"sampling: not even a batch of 1 fits .* is needed$"):
        ShrinkingBatch(4, "sampling").run(4, fitting(0))


def test_other_errors_pass_through():
    def work(first: int, last: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        ShrinkingBatch(4, "work").run(4, work)
