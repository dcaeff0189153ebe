"""The benchmark gate: what fails it, what does not, and what it cannot judge."""

import math
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import gate
from bench.cases import CASES
from bench.gate import Expectation, exit_code, judge, load_expected, main
from bench.machine import Peaks, default_device, device_class
from bench.measurements import Measurement, Session
from scorekit.runtime.timing import Timing, measure

DEVICE = "cpu: made up, 2 threads"


def measured(ratio: float | None, seconds: float = 1.0) -> Measurement:
    timing = Timing(
        candidate_s=seconds,
        ratio=ratio,
        rounds=6,
        candidate_calls=1,
        first_candidate_s=1.0,
        cold=False,
    )
    return Measurement(group="kernel", timing=timing)


class Again:
    """A second run that gives the same measurement for every case, and counts."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.calls: Counter[str] = Counter()

    def __call__(self, name: str) -> Measurement:
        self.calls[name] += 1
        return self.measurement


def never(name: str) -> Measurement:
    pytest.fail(f"{name} was measured again")


EXPECTED = {DEVICE: {"a": Expectation(ratio=0.5, margin=0.2)}}
LIMITED = {DEVICE: {"a": Expectation(limit_s=2.0)}}


def outcome(expected, measurement, remeasure=never) -> str:
    (verdict,) = judge(expected, DEVICE, {"a": measurement}, remeasure)
    assert verdict.failed == (exit_code([verdict]) == gate.FAIL)
    return verdict.outcome


@pytest.mark.parametrize("ratio", [0.5, 0.59, 0.42])
def test_a_ratio_within_its_margin_passes_without_a_second_run(ratio):
    assert outcome(EXPECTED, measured(ratio)) == "as expected"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.61, 0.7, "slow"),
        (0.61, 0.55, "not confirmed"),
        (0.61, 0.3, "not confirmed"),
        (0.41, 0.3, "unexplained win"),
        (0.41, 0.5, "not confirmed"),
        (0.41, 0.9, "not confirmed"),
        (math.nan, math.nan, "slow"),
        (0.61, math.nan, "slow"),
        (math.inf, math.inf, "slow"),
    ],
)
def test_a_deviation_counts_when_a_second_run_shows_it_again(first, second, expected):
    again = Again(measured(second))
    assert outcome(EXPECTED, measured(first), again) == expected
    assert again.calls == {"a": 1}


@pytest.mark.parametrize(("ratio", "expected"), [(0.61, "slow"), (0.41, "unexplained win")])
def test_a_deviation_fails_where_no_second_run_is_possible(ratio, expected):
    assert outcome(EXPECTED, measured(ratio), None) == expected


def test_a_win_says_how_to_explain_it():
    (verdict,) = judge(EXPECTED, DEVICE, {"a": measured(0.1)}, None)
    assert "note" in verdict.detail
    assert "0.1" in verdict.detail


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        *((2.0, None, "as expected"), (1e-9, None, "as expected")),
        *((2.1, 1.9, "not confirmed"), (2.1, 2.2, "slow"), (math.nan, math.nan, "slow")),
    ],
)
def test_a_limit_in_seconds_bounds_from_above_only(first, second, expected):
    again = never if second is None else Again(measured(None, second))
    assert outcome(LIMITED, measured(None, first), again) == expected


def test_a_missing_case_fails():
    (verdict,) = judge(EXPECTED, DEVICE, {}, never)
    assert (verdict.case, verdict.outcome, verdict.failed) == ("a", "missing", True)


def test_a_case_that_lost_its_reference_fails():
    assert outcome(EXPECTED, measured(None), None) == "missing"


def test_a_new_case_without_an_entry_fails():
    found = judge(EXPECTED, DEVICE, {"a": measured(0.5), "b": measured(0.5)}, never)
    assert [(v.case, v.outcome) for v in found] == [("a", "as expected"), ("b", "new")]
    assert exit_code(found) == gate.FAIL


def test_an_unknown_device_has_no_baseline_and_does_not_pass():
    found = judge(EXPECTED, "cpu: another", {"a": measured(0.5)}, never)
    assert [v.outcome for v in found] == ["no baseline"]
    assert exit_code(found) == gate.NO_BASELINE
    assert exit_code(judge(EXPECTED, "cpu: another", {}, never)) == gate.NO_BASELINE
    assert exit_code(judge({DEVICE: {}}, DEVICE, {}, never)) == gate.NO_BASELINE


def test_one_failure_among_passes_fails():
    table = {DEVICE: {name: Expectation(ratio=1.0, margin=0.1) for name in "abc"}}
    ratios = {"a": measured(1.0), "b": measured(2.0), "c": measured(1.0)}
    found = judge(table, DEVICE, ratios, Again(measured(2.0)))
    assert [v.outcome for v in found] == ["as expected", "slow", "as expected"]
    assert exit_code(found) == gate.FAIL
    assert exit_code(found[:1]) == gate.PASS


positive = st.floats(1e-3, 1e3)


@given(positive, st.floats(0.01, 5), positive, positive)
def test_pass_is_within_the_factor_and_nothing_else(ratio, margin, first, second):
    table = {DEVICE: {"a": Expectation(ratio=ratio, margin=margin)}}

    def side(value: float) -> int:
        return (value > ratio * (1 + margin)) - (value < ratio / (1 + margin))

    (verdict,) = judge(table, DEVICE, {"a": measured(first)}, Again(measured(second)))
    assert verdict.failed == (side(first) != 0 and side(first) == side(second))


@pytest.mark.parametrize(
    "entry",
    [
        "{}",
        "{ratio = 1.0}",
        "{margin = 0.1}",
        "{ratio = 1.0, margin = 0.1, limit_s = 2.0}",
        "{ratio = -1.0, margin = 0.1}",
        "{ratio = nan, margin = 0.1}",
        "{ratio = 1.0, margin = inf}",
        "{ratio = '1', margin = 0.1}",
        "{limit_s = 0}",
        "{limit = 2.0}",
        "1.0",
    ],
)
def test_a_bad_entry_is_refused_by_its_name(tmp_path, capsys, entry):
    path = tmp_path / "expected.toml"
    path.write_text(f'["{DEVICE}"]\n"my case" = {entry}\n')
    with pytest.raises(ValueError, match="my case") as caught:
        load_expected(path)
    assert "\n" not in str(caught.value)
    assert main(["--expected", str(path)]) == gate.BAD_INPUT
    assert "my case" in capsys.readouterr().err


def test_a_bad_file_is_refused(tmp_path, capsys):
    for name, content in (("a", "= 1"), ("b", '"device" = 1')):
        (tmp_path / name).write_text(content)
        assert main(["--expected", str(tmp_path / name)]) == gate.BAD_INPUT
    assert main(["--expected", str(tmp_path / "absent")]) == gate.BAD_INPUT
    (tmp_path / "results.json").write_text('{"format": 1}')
    assert main([str(tmp_path / "results.json")]) == gate.BAD_INPUT
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 4
    assert all(line.startswith("error: ") for line in errors)


def test_the_committed_table_has_an_entry_for_every_case_and_no_other():
    expected = load_expected(gate.EXPECTED)
    assert expected
    for entries in expected.values():
        assert entries.keys() == CASES.keys()


def save_session(path, device: str, ratio: float) -> str:
    peaks = Peaks(copy={1024: 1e9}, fp32=1e9, bf16=1e9)
    Session(conditions={"device": device}, peaks=peaks, cases={"a": measured(ratio)}).save(path)
    return str(path)


def write_expected(path, device: str) -> str:
    path.write_text(f'["{device}"]\na = {{ratio = 0.5, margin = 0.2, note = "made up"}}\n')
    return str(path)


@pytest.mark.parametrize(
    ("ratio", "device", "code", "words"),
    [
        (0.5, DEVICE, gate.PASS, "gate: as expected"),
        (0.9, DEVICE, gate.FAIL, "gate: not as expected"),
        (0.5, "cpu: another", gate.NO_BASELINE, "gate: no baseline"),
    ],
)
def test_the_command_line_judges_saved_results(tmp_path, capsys, ratio, device, code, words):
    results = save_session(tmp_path / "results.json", device, ratio)
    expected = write_expected(tmp_path / "expected.toml", DEVICE)
    assert main([results, "--expected", expected]) == code
    printed = capsys.readouterr().out
    assert printed.strip().endswith(words)
    assert ("pass" in printed.lower()) is False


@pytest.mark.parametrize(("second", "code"), [(0.5, gate.PASS), (0.9, gate.FAIL)])
def test_results_of_this_machine_are_measured_again(tmp_path, capsys, monkeypatch, second, code):
    import bench.cases

    monkeypatch.setattr(bench.cases, "CASES", {"a": None})
    monkeypatch.setattr(gate, "measure_case", lambda case, device: measured(second))
    here = device_class(default_device())
    results = save_session(tmp_path / "results.json", here, 0.9)
    expected = write_expected(tmp_path / "expected.toml", here)
    assert main([results, "--expected", expected]) == code
    assert "second run" in capsys.readouterr().out


def test_a_saved_case_that_is_gone_cannot_be_confirmed(tmp_path, capsys):
    here = device_class(default_device())
    results = save_session(tmp_path / "results.json", here, 0.9)
    expected = write_expected(tmp_path / "expected.toml", here)
    assert main([results, "--expected", expected]) == gate.BAD_INPUT
    assert "'a', which is no case any more" in capsys.readouterr().err


def test_without_a_file_every_case_is_measured(tmp_path, capsys, monkeypatch):
    from bench.cases import CASES

    here = device_class(default_device())

    def measure_session(cases, device) -> Session:
        peaks = Peaks(copy={1024: 1e9}, fp32=1e9, bf16=1e9)
        found = {case.name: measured(0.5) for case in cases}
        return Session(conditions={"device": here}, peaks=peaks, cases=found)

    monkeypatch.setattr(gate, "measure_session", measure_session)
    expected = write_expected(tmp_path / "expected.toml", here)
    assert main(["--expected", expected]) == gate.FAIL
    printed = capsys.readouterr().out
    assert printed.count("NEW ") == len(CASES)
    assert printed.count("MISSING ") == 1


def test_a_case_slowed_on_purpose_fails_and_is_confirmed():
    """Real timings of real work: the same function passes, with a delay added it does not."""
    x = torch.randn(64, 64)

    def work() -> torch.Tensor:
        return x @ x

    def slowed() -> torch.Tensor:
        time.sleep(work_s)
        return work()

    def run(candidate) -> Measurement:
        timing = measure(candidate, work, torch.device("cpu"), budget_s=0.2)
        return Measurement(group="kernel", timing=timing)

    honest = run(work)
    work_s = 5 * honest.timing.candidate_s
    table = {DEVICE: {"a": Expectation(ratio=1.0, margin=1.0)}}
    (verdict,) = judge(table, DEVICE, {"a": honest}, lambda name: run(work))
    assert not verdict.failed
    (verdict,) = judge(table, DEVICE, {"a": run(slowed)}, lambda name: run(slowed))
    assert verdict.outcome == "slow"
    assert "second run" in verdict.detail
