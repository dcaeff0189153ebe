"""NICE (Dinh et al. 2015): additive coupling layers and a diagonal scaling, exact both ways.

The flow on which score matching can be held against maximum likelihood. Two things differ from the
paper, for score matching's sake: the coupling networks are smooth (softplus, not ReLU, whose second
derivative is 0), and images may be taken to logit space, where their density has no edge.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorekit.models.energy import EnergyModel
from scorekit.models.mlp import MLP, Smooth

Prior = Literal["logistic", "gaussian"]


def _logistic(z: Tensor) -> Tensor:
    return -softplus(z) - softplus(-z)


def _gaussian(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


_PRIORS = {"logistic": _logistic, "gaussian": _gaussian}


def _shift(inputs: int, outputs: int, width: int, n_hidden: int, activation: Smooth) -> MLP:
    """Return the m of a coupling layer, zero at first so that a flow starts as the identity."""
    network = MLP(inputs, outputs, width, n_hidden, activation)
    for layer in network.hidden.children():
        assert isinstance(layer, nn.Linear)
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(network.last.weight)
    nn.init.zeros_(network.last.bias)
    return network


class NICE(EnergyModel):
    """A normalised density over (B, dim): z = exp(log_scale) coupling(x), z from the prior.

    Layer i adds a function of the coordinates of one parity to those of the other, by turns. The
    defaults are the paper's for MNIST (Sec. 5.1): 4 coupling layers of 5 hidden layers x 1000, a
    logistic prior; 2 x 64 will do for 8x8 digits. With ``n_couplings`` = 0 it is a scaled prior,
    which is all there is in one dimension.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 1000,
        n_hidden: int = 5,
        n_couplings: int = 4,
        activation: Smooth = "softplus",
        prior: Prior = "logistic",
    ) -> None:
        super().__init__()
        for name, value, low in (("dim", dim, 1), ("n_couplings", n_couplings, 0)):
            if value < low:
                raise ValueError(f"{name} = {value} must be at least {low}")
        if dim == 1 and n_couplings:
            raise ValueError(
                f"n_couplings = {n_couplings} must be 0 where dim = 1: nothing couples"
            )
        if prior not in _PRIORS:
            raise ValueError(f"prior = {prior!r} must be one of {', '.join(_PRIORS)}")
        self.dim, self.prior = dim, prior
        sizes = ((dim + 1) // 2, dim // 2)  # even coordinates, odd coordinates
        self.shifts = nn.ModuleList(
            _shift(sizes[i % 2], sizes[1 - i % 2], width, n_hidden, activation)
            for i in range(n_couplings)
        )
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def encode(self, x: Tensor) -> Tensor:
        """Map data to the prior's space, (B, dim) both; log |det| is ``log_scale.sum()``."""
        self._check(x, "x")
        return self._couple(x, 1) * self.log_scale.exp()

    def decode(self, z: Tensor) -> Tensor:
        """Return the x that :meth:`encode` maps to z."""
        self._check(z, "z")
        return self._couple(z * (-self.log_scale).exp(), -1)

    def _couple(self, x: Tensor, sign: int) -> Tensor:
        parts = [x[:, 0::2], x[:, 1::2]]
        for i, shift in list(enumerate(self.shifts))[::sign]:
            parts[1 - i % 2] = parts[1 - i % 2] + sign * shift(parts[i % 2])
        n_pairs = self.dim // 2
        paired = torch.stack([parts[0][:, :n_pairs], parts[1]], dim=2).flatten(1)
        return torch.cat([paired, parts[0][:, n_pairs:]], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density, normalised, (B,)."""
        return _PRIORS[self.prior](self.encode(x)).sum(1) + self.log_scale.sum()

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`log_prob`."""
        return self.log_prob(x)

    @torch.no_grad()
    def sample(self, uniform: Tensor) -> Tensor:
        """Map uniform noise (B, dim) in (0, 1], as of ``philox_uniform``, to samples."""
        # The noise's uppermost value is 1, where the quantile is infinite.
        u = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps / 2)
        return self.decode(torch.special.ndtri(u) if self.prior == "gaussian" else u.logit())

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; (B, {self.dim}) is needed")


def to_logit(x: Tensor, margin: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Map x in [0, 1] (B, D) to y = logit(margin + (1 - 2 margin) x) with log |det dy/dx|, (B,).

    log p(x) = log p(y) + log |det|. For dequantised images (``objectives.augment``): a density on
    the cube jumps to 0 at its faces, which score matching does not allow (Hyvarinen 2005), one on
    all of R^D need not. NICE itself, trained by maximum likelihood, has no such map. Raises
    ValueError for values outside [0, 1] and a margin outside (0, 1/2).
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"margin = {margin} must lie in (0, 1/2)")
    if x.numel():
        low, high = (float(end) for end in x.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"x lies in [{low}, {high}]; [0, 1] is needed")
    p = margin + (1 - 2 * margin) * x
    log_p, log_q = p.log(), (-p).log1p()
    return log_p - log_q, (math.log(1 - 2 * margin) - log_p - log_q).flatten(1).sum(1)


def from_logit(y: Tensor, margin: float = 1e-6) -> Tensor:
    """Return the x in [0, 1] of :func:`to_logit`, clamped to it."""
    return ((torch.sigmoid(y) - margin) / (1 - 2 * margin)).clamp(0, 1)
