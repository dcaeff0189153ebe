"""Every case at full size, measured against its reference; ``pytest bench`` runs this file."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES
from bench.measurements import Measurement, built, measure_pair


@pytest.mark.parametrize("name", CASES)
def test_case(
    name: str,
    benchmark: BenchmarkFixture,
    device: torch.device,
    measured: dict[str, Measurement],
) -> None:
    case = CASES[name]
    with built(case, device) as pair:
        measurement = measure_pair(case, pair, device)
        measured[name] = measurement
        timing = measurement.timing
        benchmark.group = case.group
        benchmark.extra_info |= {
            "ratio": timing.ratio,
            "reference_s": timing.reference_s,
            "first_candidate_s": timing.first_candidate_s,
        }

        def candidate() -> None:
            pair.candidate()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

        # A record beside pytest-benchmark's others; what is judged is the paired measurement.
        benchmark.pedantic(
            candidate,
            rounds=1 if timing.candidate_s > 0.5 else 5,
            iterations=timing.candidate_calls,
        )
    assert timing.candidate_s > 0
