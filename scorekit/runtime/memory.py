"""Batches that become smaller where the device's memory is too small for them."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

_log = logging.getLogger("scorekit")
_T = TypeVar("_T")


class BatchTooLarge(RuntimeError):
    """Not even a batch of one fits into the device's memory."""


class ShrinkingBatch:
    """A batch size that is halved, and stays so, whenever the device runs out of memory.

    ``what`` names the work in the warning, which has the old and the new size.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size, self.what = size, what

    def run(self, n: int, work: Callable[[int, int], _T]) -> list[_T]:
        """Return ``work(first, last)`` of consecutive batches of n; what is done stays done.

        Raises BatchTooLarge where a batch of one is too large.
        """
        parts: list[_T] = []
        first = 0
        while first < n:
            last = min(first + self.size, n)
            try:
                parts.append(work(first, last))
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise BatchTooLarge(
                        f"{self.what}: not even a batch of 1 fits into the device's memory; "
                        "a smaller network or image, or a larger device, is needed"
                    ) from error
                _log.warning(
                    "%s: out of memory with a batch of %d; going on with batches of %d",
                    self.what,
                    self.size,
                    self.size // 2,
                )
                self.size //= 2
            else:
                first = last
                continue
            # Only here: the error's traceback, while there, holds on to the batch.
            torch.cuda.empty_cache()
        return parts
