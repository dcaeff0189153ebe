"""Measuring cases, and measurements as JSON: one file per device class, conditions included."""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import Peaks, conditions, default_device, measure_peaks
from bench.registry import Case, Pair, Setting
from scorekit.files import CorruptFile, read_json, write_json
from scorekit.runtime.timing import Timing, measure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A case's timing with what the roofline needs to judge it."""

    group: str
    timing: Timing
    bytes_moved: int | None = None
    flops: int | None = None
    precision: str = "fp32"
    images: float | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """Measurements by case, taken on one machine in one process."""

    conditions: dict[str, Any]
    peaks: Peaks
    cases: dict[str, Measurement]

    @property
    def device(self) -> str:
        """The device class."""
        return str(self.conditions["device"])

    def save(self, path: Path) -> None:
        """Write the session as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": 1, **dataclasses.asdict(self)})


def load_session(path: Path) -> Session:
    """Return the session that :meth:`Session.save` wrote; ValueError for any other file."""
    try:
        record = read_json(path)
        if record["format"] != 1:
            raise ValueError(f"format {record['format']!r} is unknown, 1 is known")
        peaks = record["peaks"]
        copy = {int(size): rate for size, rate in peaks["copy"].items()}
        cases = {
            name: Measurement(**measured | {"timing": Timing(**measured["timing"])})
            for name, measured in record["cases"].items()
        }
        record["conditions"]["device"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; `pytest bench --save` writes results") from error
    except (CorruptFile, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no benchmark results: {error!r}") from error
    return Session(
        conditions=record["conditions"], peaks=Peaks(**peaks | {"copy": copy}), cases=cases
    )


@contextmanager
def built(case: Case, device: torch.device, *, tiny: bool = False) -> Iterator[Pair]:
    """Build a case in a fresh folder, forgetting what was compiled for the cases before it."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield case.build(Setting(device=device, folder=Path(folder), tiny=tiny))


def measure_pair(case: Case, pair: Pair, device: torch.device) -> Measurement:
    """Return the measurement of a case that has been built."""
    return Measurement(
        group=case.group,
        timing=measure(pair.candidate, pair.reference, device),
        bytes_moved=pair.bytes_moved,
        flops=pair.flops,
        precision=pair.precision,
        images=pair.images,
    )


def measure_case(case: Case, device: torch.device) -> Measurement:
    """Build and measure a case."""
    with built(case, device) as pair:
        return measure_pair(case, pair, device)


def measure_session(cases: Iterable[Case], device: torch.device | None = None) -> Session:
    """Measure cases one after another, and the machine."""
    device = device or default_device()
    before = measure_peaks(device)
    measured = {case.name: measure_case(case, device) for case in cases}
    return Session(
        conditions=conditions(device), peaks=before | measure_peaks(device), cases=measured
    )
