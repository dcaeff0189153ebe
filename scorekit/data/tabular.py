"""The tables on which kernel exponential families are compared: Parkinsons, red and white wine.

Files of the UCI Machine Learning Repository as they come. The preparation is that of the authors'
experiments with finite-difference score matching, after Wenliang et al. (2019): correlated columns
left out, wine dequantised, a tenth to test, a tenth of the rest to validate, whitened.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorekit.data.store import DataError

__all__ = ["TABLES", "Table", "Whitening", "independent_columns", "load_table"]

MAX_CORRELATION = 0.98
#: Columns of parkinsons_updrs.data before those that are used: subject#, age, sex.
N_PARKINSONS_LEFT_OUT = 3
_PARKINSONS = (
    "subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,Jitter(%),Jitter(Abs),Jitter:RAP,"
    "Jitter:PPQ5,Jitter:DDP,Shimmer,Shimmer(dB),Shimmer:APQ3,Shimmer:APQ5,Shimmer:APQ11,"
    "Shimmer:DDA,NHR,HNR,RPDE,DFA,PPE"
)
_WINE = (
    "fixed acidity;volatile acidity;citric acid;residual sugar;chlorides;free sulfur dioxide;"
    "total sulfur dioxide;density;pH;sulphates;alcohol;quality"
)


@dataclass(frozen=True, kw_only=True)
class _Known:
    file: str
    source: str
    delimiter: str
    columns: tuple[str, ...]


_PARKINSONS_TABLE = _Known(
    file="parkinsons_updrs.data",
    source="Parkinsons Telemonitoring",
    delimiter=",",
    columns=tuple(_PARKINSONS.split(",")),
)


def _wine(colour: str) -> _Known:
    return _Known(
        file=f"winequality-{colour}.csv",
        source="Wine Quality",
        delimiter=";",
        columns=tuple(_WINE.split(";")),
    )


TABLES = {"parkinsons": _PARKINSONS_TABLE, "redwine": _wine("red"), "whitewine": _wine("white")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """The affine map y = (x - mean) matrix^T after which training rows have covariance I.

    ``matrix`` is the symmetric inverse root of their correlation, over their standard deviations.
    Log densities of y are those of x less ``log_det`` = log |det matrix|.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Whitening:
        """Return the whitening of rows (N, D); ValueError where they are linearly dependent."""
        spread = rows.std(0)
        if not bool((spread > 0).all()):
            raise ValueError(f"column {int(spread.argmin())} is constant")
        # Standardised first: the columns' units are many powers of ten apart.
        correlation = ((rows - rows.mean(0)) / spread).T.cov().reshape(2 * rows.shape[1:])
        values, vectors = torch.linalg.eigh(correlation)
        if not float(values[0]) > 1e-10:
            raise ValueError(f"the correlation of its {rows.shape[1]} columns is singular")
        return cls(mean=rows.mean(0), matrix=(vectors * values.rsqrt()) @ vectors.T / spread)

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.matrix.T

    @property
    def log_det(self) -> float:
        """log |det matrix|."""
        return float(torch.linalg.slogdet(self.matrix).logabsdet)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Whitened rows, float64 (N, D) each; ``columns`` names what was left of the file's."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    columns: tuple[str, ...]
    whitening: Whitening

    @property
    def dim(self) -> int:
        """D."""
        return self.train.shape[1]


def load_table(name: str, root: str | Path, *, seed: int = 0, noise: float = 0.0) -> Table:
    """Read "parkinsons", "redwine" or "whitewine" from its UCI file in ``root`` or ``root``/uci.

    ``seed`` draws the splits: int(N / 10) rows to test, a tenth of the others to validate. The
    training rows alone determine the whitening. ``noise`` >= 0 is the standard deviation of
    Gaussian noise added once to the whitened training and validation rows (the authors': 0.05);
    test rows never have any. Wine is dequantised with uniform noise as wide as the median distance
    of neighbouring values of its column; that width is ours, the source names none. Raises
    DataError for a file that is not as it should be.
    """
    if name not in TABLES:
        raise DataError(f"table={name}: unknown; known are {', '.join(TABLES)}")
    if seed < 0:
        raise DataError(f"seed={seed}: a whole number from 0 is right")
    if not (noise >= 0 and math.isfinite(noise)):
        raise DataError(f"noise={noise}: a finite number from 0 is right")
    known = TABLES[name]
    path = _find(Path(root), known)
    values = _read(path, known)
    rng = np.random.Generator(np.random.Philox(seed))
    columns = known.columns
    if name == "parkinsons":
        values, columns = values[:, N_PARKINSONS_LEFT_OUT:], columns[N_PARKINSONS_LEFT_OUT:]
        kept = independent_columns(values)
    else:
        kept = list(range(len(columns) - 1))  # the quality is a label
        values = values + _steps(values) * (rng.random(values.shape) - 0.5)
    rows = torch.from_numpy(values[rng.permutation(len(values))][:, kept])
    n_test = len(rows) // 10
    n_valid = (len(rows) - n_test) // 10
    if n_valid < 1:
        raise DataError(f"{path}: has {len(rows)} rows; at least 12 are needed")
    train, valid, test = rows.split([len(rows) - n_test - n_valid, n_valid, n_test])
    try:
        whitening = Whitening.of(train)
    except ValueError as error:
        raise DataError(f"{path}: cannot be whitened: {error}") from error

    def noisy(rows: Tensor) -> Tensor:
        return whitening(rows) + noise * torch.from_numpy(rng.standard_normal(rows.shape))

    return Table(
        name=name,
        train=noisy(train),
        valid=noisy(valid),
        test=whitening(test),
        columns=tuple(columns[i] for i in kept),
        whitening=whitening,
    )


def independent_columns(values: np.ndarray) -> list[int]:
    """Return the columns left when the earlier of each pair with |correlation| > .98 is dropped."""
    with np.errstate(invalid="ignore"):  # a constant column correlates with none
        correlation = np.abs(np.corrcoef(values, rowvar=False))
    return [
        i for i in range(values.shape[1]) if not (correlation[i, i + 1 :] > MAX_CORRELATION).any()
    ]


def _steps(values: np.ndarray) -> np.ndarray:
    """Return each column's median distance of neighbouring distinct values (0 where constant)."""
    distinct = [np.unique(column) for column in values.T]
    return np.array([np.median(np.diff(d)) if len(d) > 1 else 0.0 for d in distinct])


def _find(root: Path, known: _Known) -> Path:
    path = next((p for p in (root, root / "uci") if (p / known.file).is_file()), None)
    if path is None:
        raise DataError(
            f"{root / known.file}: no such file; get it from the data set {known.source!r} of the "
            "UCI Machine Learning Repository and put it there"
        )
    return path / known.file


def _read(path: Path, known: _Known) -> np.ndarray:
    """Return float64 (N, columns); DataError names the first line that is wrong."""
    try:
        with open(path, newline="", encoding="ascii") as file:
            header, *lines = list(csv.reader(file, delimiter=known.delimiter)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a text table ({error})") from error
    if header != list(known.columns):
        pairs = zip(header, known.columns, strict=False)
        wrong = next(((a, b) for a, b in pairs if a != b), None)
        reason = f"{wrong[0][:40]!r} stands where {wrong[1]!r} should" if wrong else "count"
        raise DataError(
            f"{path}: wrong columns ({reason}); its first line should name "
            f"{len(known.columns)}, separated by {known.delimiter!r}, and names {len(header)}"
        )
    values = np.empty((len(lines), len(header)))
    for i, line in enumerate(lines):
        if len(line) != len(header):
            raise DataError(
                f"{path}: line {i + 2} has {len(line)} values; {len(header)} are needed"
            )
        for j, text in enumerate(line):
            try:
                values[i, j] = float(text)
            except ValueError:
                values[i, j] = math.nan
            if not math.isfinite(values[i, j]):
                raise DataError(
                    f"{path}: line {i + 2}, column {header[j]!r} is {text[:40]!r}; "
                    "a finite number is needed"
                )
    return values
