"""Averages of the weights beside Technique 5's: power functions, ramps, and any width post hoc.

A profile says how much of the average after T iterations the weights after each of them make.
Power functions and reconstruction: Karras et al. 2023 (arXiv:2312.02696), Sec. 3 and App. C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorekit.techniques.ema import check_momentum

#: The relative width at gamma = 0, where all weights count alike: the widest power function.
MAX_WIDTH = 12**-0.5


@dataclass(frozen=True)
class EmaProfile:
    """A moving average by its ``kind``, "constant", "ramp" or "power", and that kind's number.

    The number is the momentum m, for "power" gamma. ``name`` is what :func:`parse_ema` reads.
    """

    kind: str
    number: float
    name: str

    def momentum(self, iteration: int) -> float:
        """Return beta_t of the update after iteration t = 1, 2, ...: theta' <- beta theta' + ...

        Constant m; the ramp min(m, (1 + t) / (10 + t)); or (1 - 1/t)^(gamma + 1), which is 0 for
        t = 1, so that the initial weights are forgotten.
        """
        if self.kind == "power":
            return (1 - 1 / iteration) ** (self.number + 1)
        if self.kind == "ramp":
            return min(self.number, (1 + iteration) / (10 + iteration))
        return self.number

    def weights(self, iterations: int) -> np.ndarray:
        """Return the share of theta_0 ... theta_T in the average after T iterations, (T + 1,).

        float64, of sum 1; theta_0 are the initial weights.
        """
        t = np.arange(1, iterations + 1, dtype=np.float64)
        if self.kind == "power":
            # The product of all later momenta telescopes to (t / T)^(gamma + 1).
            return np.diff((np.arange(iterations + 1) / iterations) ** (self.number + 1), prepend=0)
        beta = np.full_like(t, self.number)
        if self.kind == "ramp":
            beta = np.minimum(beta, (1 + t) / (10 + t))
        later = np.concatenate([np.cumprod(beta[::-1])[::-1], [1.0]])
        return np.concatenate([[1.0], 1 - beta]) * later

    def relative_width(self, iterations: int) -> float:
        """Return the standard deviation of t / T under the weights, after T iterations.

        For a power function sqrt((g + 1) / ((g + 2)^2 (g + 3))), g = gamma, but for one step of T;
        for a constant momentum about 1 / ((1 - m) T), as long as that is far below 1.
        """
        share, t = self.weights(iterations), np.arange(iterations + 1) / iterations
        mean = float(share @ t)
        return math.sqrt(max(0.0, float(share @ (t - mean) ** 2)))


def power_width(gamma: float) -> float:
    """Return the relative width of a power function's average (Karras et al. 2023, Sec. 3.1)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_gamma(width: float) -> float:
    """Return gamma >= 0 of the power function of a relative width in (0, 12^(-1/2)].

    The largest root of gamma^3 + 7 gamma^2 + (16 - 1/w^2) gamma + 12 - 1/w^2. ValueError outside.
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"relative width = {width} must lie in (0, {MAX_WIDTH:.4f}]")
    square = width**-2
    return max(0.0, float(np.roots([1, 7, 16 - square, 12 - square]).real.max()))


def parse_ema(text: str) -> EmaProfile:
    """Return the profile that a word names: "0.999", "ramp:0.999" or "power:0.05".

    A momentum, a momentum with the ramp-up min(m, (1 + t) / (10 + t)), or a relative width.
    Raises ValueError, which says what there is, for others.
    """
    kind, _, number = text.strip().rpartition(":")
    try:
        value = float(number)
        if kind == "power":
            return EmaProfile("power", power_gamma(value), text.strip())
        if kind in ("", "ramp"):
            check_momentum(value)
            return EmaProfile(kind or "constant", value, text.strip())
    except ValueError as error:
        raise ValueError(f"ema = {text!r}: {error}") from error
    raise ValueError(f"ema = {text!r}: a momentum, 0.999, or ramp:0.999, or a width, power:0.05")


@dataclass(frozen=True, kw_only=True)
class PosthocFit:
    """Coefficients of tracked averages, of sum 1, and the distance that they leave.

    ``residual`` is ||sum_i c_i w_i - w|| / ||w|| of the profiles' weights: 0 is the average itself.
    """

    coefficients: np.ndarray
    residual: float


def posthoc_fit(
    tracked: Sequence[tuple[EmaProfile, int]], target: EmaProfile, iterations: int
) -> PosthocFit:
    """Return how averages at snapshots make another after ``iterations``: least squares.

    ``tracked`` are (profile, iterations so far) of each average kept; those of later iterations
    have no part in it. Karras et al. (2023, App. C.3) match the profiles as functions of time; here
    they are matched as the discrete weights that they give, for any kind of profile, and the
    coefficients sum to 1. Memory is O(len(tracked) * iterations). Raises ValueError where nothing
    is tracked, or something beyond ``iterations``.
    """
    if not tracked:
        raise ValueError("no average was tracked: at least 1 is needed")
    if late := [t for _, t in tracked if not 1 <= t <= iterations]:
        raise ValueError(f"an average of iteration {late[0]} has no part in one of {iterations}")
    wanted = target.weights(iterations)
    columns = np.zeros((iterations + 1, len(tracked)))
    for i, (profile, t) in enumerate(tracked):
        columns[: t + 1, i] = profile.weights(t)
    # The last coefficient is 1 minus the others.
    last = columns[:, -1]
    others = np.linalg.lstsq(columns[:, :-1] - last[:, None], wanted - last, rcond=None)[0]
    coefficients = np.append(others, 1 - others.sum())
    left = columns @ coefficients - wanted
    return PosthocFit(
        coefficients=coefficients,
        residual=float(np.linalg.norm(left) / np.linalg.norm(wanted)),
    )


def posthoc_average(
    states: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float] | np.ndarray
) -> dict[str, Tensor]:
    """Return sum_i c_i state_i of state dicts with the same names, in their dtypes.

    Sums are in float64; what is the same in all of them, as buffers are, stays as it is. Raises
    ValueError for other numbers of states and coefficients, and for other names.
    """
    if len(states) != len(coefficients) or not states:
        raise ValueError(f"{len(states)} states and {len(coefficients)} coefficients: as many each")
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("the states do not hold the same names")
    found = {}
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        if all(torch.equal(first, tensor) for tensor in tensors[1:]):
            found[name] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for tensor, coefficient in zip(tensors, coefficients, strict=True):
            total += float(coefficient) * tensor.double()
        found[name] = total.to(first.dtype)
    return found
