"""The benchmarks themselves: every body runs, both sides do one job, and timing is what it says."""

import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import machine
from bench.cases import CASES
from bench.machine import Peaks, commit, conditions, device_class, measure_peaks, slug
from bench.measurements import Measurement, Session, built, load_session
from bench.registry import Pair, case
from scorekit.runtime.timing import measure, median_interval

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_and_both_sides_do_the_same_job(name):
    with built(CASES[name], machine.default_device(), tiny=True) as pair:
        ours = pair.candidate()
        if pair.reference is None:
            assert ours is not None
            return
        theirs = pair.reference()
        if pair.random:
            for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=True):
                assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
                assert a.isfinite().all()
                # A candidate that does nothing would be quick.
                assert a.ndim == 0 or a.std() > 0
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def as_tuple(value) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_the_contracts_programs_are_all_among_the_cases():
    groups = {case.group for case in CASES.values()}
    assert groups == {"kernel", "network", "training", "sampler", "data", "launcher", "report"}


def test_a_name_is_given_once():
    name = next(iter(CASES))
    with pytest.raises(ValueError, match="is there already"):
        case(name, "kernel")(lambda setting: Pair(candidate=lambda: None))


def test_calls_come_by_turns_with_the_order_flipped():
    log = []

    def sleeper(name: str):
        def function() -> None:
            log.append(name)
            time.sleep(3e-3)

        return function

    timing = measure(sleeper("a"), sleeper("b"), CPU, budget_s=0.05)
    assert (timing.candidate_calls, timing.reference_calls) == (1, 1)
    rounds = log[-2 * timing.rounds :]
    assert rounds == ["a", "b", "b", "a"] * (timing.rounds // 2)
    assert timing.rounds % 2 == 0
    assert timing.rounds >= 6


def test_ratio_and_times_are_those_of_the_functions():
    timing = measure(
        lambda: time.sleep(4e-3), lambda: time.sleep(16e-3), CPU, budget_s=0.3, max_rounds=12
    )
    assert timing.candidate_s == pytest.approx(4e-3, rel=0.5)
    assert timing.reference_s == pytest.approx(16e-3, rel=0.5)
    assert timing.ratio == pytest.approx(0.25, rel=0.3)
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high


def test_the_first_call_is_in_no_median():
    calls = iter([0.3])
    timing = measure(lambda: time.sleep(next(calls, 3e-3)), None, CPU, budget_s=0.1)
    assert timing.first_candidate_s >= 0.3
    assert timing.candidate_s < 0.1
    assert timing.ratio is None
    assert timing.reference_s is None


def test_short_calls_are_repeated_until_a_timing_is_long_enough():
    timing = measure(lambda: None, lambda: None, CPU, budget_s=0.05)
    assert timing.candidate_calls > 100
    assert timing.candidate_s < 1e-5


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=80))
def test_the_median_interval_is_the_widest_that_its_probability_allows(values):
    from scipy.stats import binom

    n = len(values)
    low, high = median_interval(values)
    # The rank that scipy's quantile gives, in a formulation of its own.
    rank = int(binom.ppf(0.025, n, 0.5))
    if 2 * binom.cdf(rank, n, 0.5) <= 0.05:
        rank += 1
    rank = max(rank, 1)
    assert (low, high) == (sorted(values)[rank - 1], sorted(values)[n - rank])


def test_six_rounds_are_the_fewest_with_a_95_percent_interval():
    assert 2 * 0.5**6 <= 0.05 < 2 * 0.5**5
    assert median_interval(range(6)) == (0, 5)
    assert median_interval(range(9)) == (1, 7)


def test_the_device_class_tells_machines_and_threads_apart(monkeypatch):
    here = device_class(CPU)
    assert here.startswith("cpu: ")
    assert f"{torch.get_num_threads()} thread" in here
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert device_class(CPU).endswith(", 77 threads")
    assert slug("cpu: AMD EPYC (a; b), 2 threads") == "cpu-amd-epyc-a-b-2-threads"


def test_conditions_name_what_was_measured():
    found = conditions(CPU)
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert len(found["commit"].split("+")[0]) in (40, len("unknown"))


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert commit(tmp_path) == "unknown"


def test_the_roofline_is_the_slower_of_copying_and_computing():
    peaks = Peaks(copy={100: 50.0, 1000: 10.0}, fp32=4.0, bf16=8.0)
    assert peaks.bandwidth(1) == peaks.bandwidth(100) == 50.0
    assert peaks.bandwidth(101) == peaks.bandwidth(10**6) == 10.0
    assert peaks.bound_s(100, None, "fp32") == 2.0
    assert peaks.bound_s(100, 16, "fp32") == 4.0
    assert peaks.bound_s(100, 16, "bf16") == 2.0
    assert peaks.bound_s(None, None, "fp32") is None
    other = Peaks(copy={100: 60.0, 1000: 9.0}, fp32=5.0, bf16=7.0)
    assert peaks | other == Peaks(copy={100: 60.0, 1000: 10.0}, fp32=5.0, bf16=8.0)


def test_peaks_are_measured(monkeypatch):
    monkeypatch.setattr(machine, "_COPY_BYTES", (2**16, 2**20))
    peaks = measure_peaks(CPU, matrix=64, repetitions=2)
    assert set(peaks.copy) == {2**16, 2**20}
    # From an emulator to ten of the largest accelerators.
    assert all(1e6 < rate < 1e14 for rate in peaks.copy.values())
    assert all(1e6 < rate < 1e17 for rate in (peaks.fp32, peaks.bf16))


def test_a_session_is_read_back_as_it_was_written(tmp_path):
    timing = measure(lambda: None, lambda: None, CPU, budget_s=0.01)
    alone = replace(timing, ratio=None, ratio_low=None, ratio_high=None, reference_s=None)
    session = Session(
        conditions=conditions(CPU),
        peaks=Peaks(copy={1024: 2.5e9, 4096: 1e9}, fp32=1e10, bf16=2e10),
        cases={
            "a": Measurement(group="kernel", timing=timing, bytes_moved=10, flops=20, images=3),
            "b": Measurement(group="launcher", timing=alone),
        },
    )
    session.save(tmp_path / "new folder" / "results.json")
    assert load_session(tmp_path / "new folder" / "results.json") == session


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "peaks": 3}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no benchmark results"):
        load_session(path)
    with pytest.raises(ValueError, match="no such file"):
        load_session(tmp_path / "absent.json")
