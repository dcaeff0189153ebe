"""Timing by turns."""

import torch

from scorekit.runtime.timing import time_by_turns


def test_all_run_in_every_round_in_an_order_that_flips():
    calls: list[str] = []

    def slow(name):
        def function():
            calls.append(name)
            torch.ones(300, 300).matmul(torch.ones(300, 300)).sum().item()

        return function

    functions = {name: slow(name) for name in "abc"}
    times = time_by_turns(functions, torch.device("cpu"), rounds=4)
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys("abc", 4)
    assert all(seconds > 0 for found in times.values() for seconds in found)
    # Repetitions of one timing stand together.
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert "".join(order).endswith("abcbabcba")
