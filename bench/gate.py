"""Compare measurements with what is expected of this device class, and fail where they differ.

    python -m bench.gate [RESULTS.json] [--expected expected.toml]

Without a file every case is measured now. Exit codes: 0 as expected, 1 not as expected, 2 bad
input, 3 no baseline: nothing is expected of this device class, so nothing was judged.
"""

import argparse
import math
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.machine import default_device, device_class
from bench.measurements import Measurement, Session, load_session, measure_case, measure_session

EXPECTED = Path(__file__).parent / "expected.toml"
PASS, FAIL, BAD_INPUT, NO_BASELINE = 0, 1, 2, 3

Outcome = Literal[
    "as expected", "not confirmed", "slow", "unexplained win", "missing", "new", "no baseline"
]
Remeasure = Callable[[str], Measurement]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A case is to have ``ratio`` within a factor 1 + ``margin``, or to take at most ``limit_s``.

    Raises ValueError unless one of the two is given, with positive numbers. ``note`` says why a
    ratio changed, for whoever reads the table.
    """

    ratio: float | None = None
    margin: float | None = None
    limit_s: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        given = (self.ratio is not None, self.margin is not None, self.limit_s is not None)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError("needs ratio and margin, or limit_s alone")
        for name in ("ratio", "margin", "limit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be a positive number")

    def differs(self, measured: Measurement) -> tuple[Outcome, str]:
        """Return how one measurement compares, and the numbers."""
        if self.limit_s is not None:
            seconds = measured.timing.candidate_s
            text = f"{seconds:.3g} s, limit {self.limit_s:g} s"
            # A NaN is smaller than nothing, and slow.
            return ("as expected" if seconds <= self.limit_s else "slow"), text
        assert self.ratio is not None and self.margin is not None
        ratio = measured.timing.ratio
        text = f"expected {self.ratio:.3g} within a factor {1 + self.margin:.3g}"
        if ratio is None:
            return "missing", f"no ratio, as the case has no reference; {text}"
        text = f"ratio {ratio:.3g}, {text}"
        if not ratio <= self.ratio * (1 + self.margin):
            return "slow", text
        if not ratio >= self.ratio / (1 + self.margin):
            return "unexplained win", text
        return "as expected", text


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one case."""

    case: str
    outcome: Outcome
    detail: str

    @property
    def failed(self) -> bool:
        """Whether it fails the gate."""
        return self.outcome in ("slow", "unexplained win", "missing", "new")


def judge(
    expected: Mapping[str, Mapping[str, Expectation]],
    device: str,
    measured: Mapping[str, Measurement],
    remeasure: Remeasure | None,
) -> list[Verdict]:
    """Return a verdict for each case that is expected of the device class or was measured.

    A case that is too slow or too fast is measured once more with ``remeasure`` and fails where it
    is so again; without ``remeasure`` it fails at once. For a device class that ``expected`` does
    not have, every verdict is "no baseline".
    """
    if device not in expected:
        detail = f"nothing is expected of {device!r}"
        return [Verdict(case=name, outcome="no baseline", detail=detail) for name in measured]
    table = expected[device]
    verdicts = []
    for name in dict.fromkeys((*table, *measured)):
        if name not in measured:
            outcome, detail = _outcome("missing", "it is expected and was not measured")
        elif name not in table:
            outcome, detail = _outcome("new", "it was measured and has no entry; add one")
        else:
            outcome, detail = table[name].differs(measured[name])
            if outcome in ("slow", "unexplained win") and remeasure is not None:
                second, again = table[name].differs(remeasure(name))
                detail = f"{detail}; second run: {again}"
                if second != outcome:
                    outcome = "not confirmed"
            if outcome == "unexplained win":
                detail += "; give the new ratio an entry with a note that explains it"
        verdicts.append(Verdict(case=name, outcome=outcome, detail=detail))
    return verdicts


def _outcome(outcome: Outcome, detail: str) -> tuple[Outcome, str]:
    return outcome, detail


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return the gate's exit code; to have judged nothing is never to pass."""
    if any(verdict.failed for verdict in verdicts):
        return FAIL
    if not verdicts or any(verdict.outcome == "no baseline" for verdict in verdicts):
        return NO_BASELINE
    return PASS


def load_expected(path: Path) -> dict[str, dict[str, Expectation]]:
    """Return the expectations by device class and case; ValueError, in one line, for a bad file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error
    expected: dict[str, dict[str, Expectation]] = {}
    for device, cases in content.items():
        if not isinstance(cases, dict):
            raise ValueError(f"{path}: {device!r} is not a table of cases")
        expected[device] = {}
        for name, entry in cases.items():
            try:
                expected[device][name] = Expectation(**entry)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: [{device!r}] {name!r} {error}") from error
    return expected


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="?", type=Path, help="default: measure every case now")
    parser.add_argument("--expected", type=Path, default=EXPECTED)
    arguments = parser.parse_args(argv)
    try:
        expected = load_expected(arguments.expected)
        session = None if arguments.results is None else load_session(arguments.results)
        verdicts = _judge_session(expected, session)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    width = max((len(verdict.case) for verdict in verdicts), default=0)
    for verdict in verdicts:
        print(f"{verdict.outcome.upper():<15} {verdict.case:<{width}}  {verdict.detail}")
    code = exit_code(verdicts)
    words = {PASS: "as expected", FAIL: "not as expected", NO_BASELINE: "no baseline"}
    print(f"gate: {words[code]}")
    return code


def _judge_session(
    expected: Mapping[str, Mapping[str, Expectation]], session: Session | None
) -> list[Verdict]:
    # The cases bring in every package there is; a bad command line is told without them.
    from bench.cases import CASES

    device = default_device()
    if session is None:
        session = measure_session(CASES.values(), device)

    def remeasure(name: str) -> Measurement:
        if name not in CASES:
            raise ValueError(f"the results hold {name!r}, which is no case any more: measure anew")
        return measure_case(CASES[name], device)

    # Another machine's case cannot be measured again here.
    here = session.device == device_class(device)
    return judge(expected, session.device, session.cases, remeasure if here else None)


if __name__ == "__main__":
    sys.exit(main())
