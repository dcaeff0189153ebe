"""How the tables and figures of the grid ``finite-difference`` say things."""

from __future__ import annotations

import pandas as pd

from ablations.reporting.wording import number
from scorekit.data.tabular import TABLES

OBJECTIVE_NAMES = {
    "dsm": "DSM",
    "fd_dsm": "FD-DSM",
    "exact_sm": "exact SM",
    "ssm": "SSM",
    "ssm_vr": "SSM-VR",
    "fd_ssm": "FD-SSM",
    "fd_ssm_vr": "FD-SSM-VR",
    "mle": "maximum likelihood",
    "curvature": "curvature propagation",
    "approximate": "approximate back-propagation",
}
IMAGE_NAMES = {"digits": "digits, 8×8", "mnist": "MNIST, 28×28"}
TABLE_NAMES = {"parkinsons": "Parkinsons", "redwine": "RedWine", "whitewine": "WhiteWine"}
MODEL_NAMES = {
    "mlp": "MLP energy",
    "conv": "Convolutional energy",
    "score": "NCSNv2 score network",
    "ncsn": "NCSN, whole training step",
}
SOURCE = "authors' response"
assert TABLE_NAMES.keys() == TABLES.keys()


def method_name(epsilon: float | None) -> str:
    """The objective and its epsilon; None is the limit, SSM."""
    return "SSM" if epsilon is None else f"FD-SSM, ε = {epsilon:g}"


def with_spread(mean: float, spread: float) -> str:
    """A mean and its standard deviation to the same decimals; a dash where there is none."""
    if mean is None or pd.isna(mean):
        return "—"
    return f"{mean:,.2f}" + ("" if spread is None or pd.isna(spread) else f" ± {spread:.2f}")


def between(low: float, high: float) -> str:
    """An interval for reading; a dash where there is none."""
    if low is None or pd.isna(low):
        return "—"
    first, last = number(low), number(high)
    return first if first == last else f"{first} to {last}"
