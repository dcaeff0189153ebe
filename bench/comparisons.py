"""Comparisons of one way to compute with another, as JSON and as a table."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ablations.reporting.wording import number
from bench.machine import slug
from scorekit.files import CorruptFile, read_json, write_json
from scorekit.runtime.compilation import PRECISIONS, Precision, autocast, precision_context


@dataclass(frozen=True, kw_only=True)
class FidelitySettings:
    """What is trained and sampled; ValueError for what gives no spread or no loss to compare.

    Everything else is the quick budget's, noise scales and step size by Techniques 1, 2 and 4.
    """

    iterations: int = 400
    seeds: int = 3
    samples: int = 256
    compile: bool = False
    width: int = 16
    n_steps_each: int = 5
    ema_momentum: float = 0.99  # averages over a quarter of so few iterations, not over all

    def __post_init__(self) -> None:
        for name, least in (("iterations", 4), ("seeds", 2), ("samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the same computation is carried out."""

    precision: Precision
    compile: bool = False

    @property
    def name(self) -> str:
        """As tables show it: "fp32", "bf16 compiled"."""
        return self.precision + " compiled" * self.compile

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Run forward passes this way."""
        with precision_context(self.precision), autocast(self.precision, device.type):
            yield


REFERENCE = Way(precision="fp32")


def ways(device: torch.device, compile: bool) -> list[Way]:
    """Return the reference and all that is compared with it: TF32 exists on CUDA only."""
    known = [p for p in PRECISIONS if p != "tf32" or device.type == "cuda"]
    return [Way(precision=p, compile=c) for c in (False, True)[: 1 + compile] for p in known]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity under one way, beside its value in the reference (means over pairs).

    ``difference`` is the mean over pairs (same seed) of their distance, ``spread`` what another
    seed changes in the reference: see :func:`run` for each quantity's own.
    """

    quantity: str
    way: str
    value: float | None
    reference: float | None
    difference: float
    spread: float
    sigma: float | None = None  # of scores

    @property
    def ratio(self) -> float:
        """difference / spread."""
        if self.spread == 0:
            return 0.0 if self.difference == 0 else float("inf")
        return self.difference / self.spread

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        return f"{'within' if self.ratio <= 1 else 'outside'} the seed-to-seed spread"


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Comparisons taken on one machine in one process; ``curves`` are training losses by way and
    seed, means over equal parts of the training."""

    conditions: dict[str, Any]
    settings: FidelitySettings
    comparisons: list[Comparison]
    curves: dict[str, list[list[float]]]
    seconds: float

    @property
    def device(self) -> str:
        """The device class."""
        return str(self.conditions["device"])

    def save(self, folder: Path) -> Path:
        """Write the comparisons as JSON, named by device class; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"fidelity-{slug(self.device)}.json"
        write_json(path, {"format": 1, "kind": "fidelity", **dataclasses.asdict(self)})
        return path


def load_fidelity(path: Path) -> Fidelity:
    """Return what :meth:`Fidelity.save` wrote; ValueError for any other file."""
    try:
        record = read_json(path)
        if (record.pop("kind"), record.pop("format")) != ("fidelity", 1):
            raise ValueError("another kind or format")
        record["conditions"]["device"]
        record["settings"] = FidelitySettings(**record["settings"])
        record["comparisons"] = [Comparison(**row) for row in record["comparisons"]]
        return Fidelity(**record)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; `python -m bench.fidelity` writes it") from error
    except (CorruptFile, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no fidelity results: {error!r}") from error


def fidelity_table(fidelity: Fidelity, style: str = "simple") -> str:
    """Return the comparisons in one of tabulate's styles."""
    rows = [
        [
            *(row.quantity, row.way, number(row.value), number(row.reference)),
            *(number(row.difference), number(row.spread), f"{row.ratio:.3g}", row.verdict),
        ]
        for row in fidelity.comparisons
    ]
    headers = ("quantity", "way", "value", "in fp32", "difference", "spread", "ratio", "verdict")
    align = ("left", "left", *("right",) * 5, "left")
    return tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True)
