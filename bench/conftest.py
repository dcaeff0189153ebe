"""``pytest bench``: its option ``--save``, and the table at its end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.machine import conditions, default_device, measure_peaks, slug
from bench.measurements import RESULTS, Measurement, Session
from bench.report import table_text


class Collected:
    """What the cases that ran have measured."""

    def __init__(self) -> None:
        self.cases: dict[str, Measurement] = {}
        self.session: Session | None = None


_COLLECTED = pytest.StashKey[Collected]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--save",
        nargs="?",
        const=RESULTS,
        type=Path,
        metavar="FOLDER",
        help="write the measurements to FOLDER (default: bench/results), named by device class",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COLLECTED] = Collected()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return default_device()


@pytest.fixture(scope="session")
def measured(
    request: pytest.FixtureRequest, device: torch.device
) -> Iterator[dict[str, Measurement]]:
    """Where a case leaves its measurement; the machine is measured before and after them all."""
    collected = request.config.stash[_COLLECTED]
    before = measure_peaks(device)
    yield collected.cases
    collected.session = Session(
        conditions=conditions(device),
        peaks=before | measure_peaks(device),
        cases=collected.cases,
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = config.stash[_COLLECTED].session
    if session is None:
        return
    terminalreporter.section("ratios: time of the candidate / time of the reference")
    terminalreporter.write_line(table_text(session))
    folder = config.getoption("--save")
    if folder is not None:
        path = folder / f"{slug(session.device)}.json"
        session.save(path)
        terminalreporter.write_line(f"saved: {path}")
