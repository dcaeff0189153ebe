"""Deep kernel exponential families (Wenliang et al. 2019): a learned kernel, solved coefficients.

log p(x) = sum_m alpha_m k(x, z_m) + log q0(x) + constant. The log density is linear in alpha, so
the exact score matching objective is quadratic in it, and alpha is what minimises it on one half of
a batch; the kernel is trained on the other half, through the solution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorekit.models.energy import EnergyModel


class ScoreMatchingQuadratic(NamedTuple):
    """Exact score matching as a function of alpha: 1/2 alpha^T gram alpha + linear^T alpha + c.

    The mean over rows of 1/2 ||s||^2 + tr H (Hyvarinen 2005); float64 (M, M), (M,) and ().
    """

    gram: Tensor
    linear: Tensor
    constant: Tensor

    def value(self, alpha: Tensor) -> Tensor:
        """Return the objective at alpha (M,): a float64 scalar."""
        alpha = alpha.to(torch.float64)
        return 0.5 * alpha @ self.gram @ alpha + self.linear @ alpha + self.constant

    def minimiser(self, ridge: Tensor) -> Tensor:
        """Return the alpha that minimises the objective plus ridge / 2 ||alpha||^2; float64 (M,).

        Differentiable; as Wenliang et al. (2019), without their penalty on curvature.
        """
        eye = torch.eye(len(self.linear), dtype=torch.float64, device=self.linear.device)
        factor = torch.linalg.cholesky(self.gram + ridge.to(torch.float64) * eye)
        return -torch.cholesky_solve(self.linear[:, None], factor).squeeze(1)


class _Features(nn.Module):
    """``n_kernels`` networks side by side, dim -> hidden -> hidden -> hidden with softplus.

    A linear map of the input is added to the result, as in Wenliang et al. (2019), so that
    a kernel starts out as one of the inputs and stays informative far from the data.
    """

    def __init__(self, n_kernels: int, dim: int, hidden: int) -> None:
        super().__init__()

        def weight(inputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n_kernels, inputs, hidden) / math.sqrt(inputs))

        self.weights = nn.ParameterList([weight(dim), weight(hidden)])
        self.biases = nn.ParameterList([torch.zeros(n_kernels, 1, hidden) for _ in range(2)])
        # Without a bias: kernels see differences of features alone.
        self.last = weight(hidden)
        self.skip = weight(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map points (N, dim) to features (R, N, hidden)."""
        h = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = softplus(h @ weight + bias)
        return h @ self.last + x @ self.skip

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (R, N, hidden) with d/dx_d and d^2/dx_d^2, (R, N, dim, hidden) each."""
        n, dim = x.shape
        h = x
        first = torch.eye(dim, dtype=x.dtype, device=x.device).expand(1, n, dim, dim)
        second = torch.zeros_like(first)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = h @ weight + bias
            first, second = first @ weight[:, None], second @ weight[:, None]
            slope = torch.sigmoid(h)[:, :, None]
            second = slope * (second + (1 - slope) * first.square())
            first, h = slope * first, softplus(h)
        last, skip = self.last[:, None], self.skip[:, None]
        return h @ self.last + x @ self.skip, first @ last + skip, second @ last


class DKEF(EnergyModel):
    """A deep kernel exponential family over (B, D) with M inducing points.

    k(x, z) = sum_r rho_r exp(-||phi_r(x) - phi_r(z)||^2 / (2 sigma_r^2)), sum rho_r = 1, with
    features of small networks; q0 = N(mean, diag(std^2)), normalised. Everything is learned but
    ``alpha`` (M,), a buffer that is 0 until :meth:`fit_coefficients`. The authors' sizes are
    M = 200, 3 kernels, hidden 30; the features' depth is ours. q0 is a Gaussian and not the
    generalised one of Wenliang et al., whose second derivative has a pole at the mean for exponents
    below 2: score matching would make for it.

    ``inducing`` (M, D), rows of the training data as a rule, gives their first places, the
    bandwidths (1/2, 1 and 2 median distances of their features) and q0 (their mean and std).
    """

    def __init__(
        self, inducing: Tensor, *, n_kernels: int = 3, hidden: int = 30, ridge: float = 1e-3
    ) -> None:
        super().__init__()
        if inducing.ndim != 2 or len(inducing) < 2:
            raise ValueError(f"inducing has shape {tuple(inducing.shape)}; (M >= 2, D) is needed")
        for name, value in (("n_kernels", n_kernels), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if not (ridge > 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge = {ridge} must be positive and finite")
        inducing = inducing.detach().clone()
        m, dim = inducing.shape
        self.inducing = nn.Parameter(inducing)
        self.features = _Features(n_kernels, dim, hidden).to(inducing)
        self.log_ridge = nn.Parameter(torch.full((), math.log(ridge)).to(inducing))
        self.log_mixing = nn.Parameter(inducing.new_zeros(n_kernels))
        self.mean = nn.Parameter(inducing.mean(0))
        self.log_std = nn.Parameter(inducing.std(0).log())
        with torch.no_grad():
            distances = torch.stack([torch.pdist(f).median() for f in self.features(inducing)])
            if not bool((distances > 0).all()):
                raise ValueError("half of the inducing points or more are the same")
            factors = 2 ** torch.linspace(-1, 1, n_kernels) if n_kernels > 1 else torch.ones(1)
        self.log_bandwidth = nn.Parameter((distances * factors.to(inducing)).log())
        self.alpha: Tensor
        self.register_buffer("alpha", inducing.new_zeros(m))

    def _kernels(self, features: Tensor, centres: Tensor) -> Tensor:
        """Return rho_r k_r of (R, N, F) and (R, M, F) features: (R, N, M)."""
        # Not clamped at 0: a clamp would cut off the curvature at a point's own inducing point.
        squared = (
            features.square().sum(2)[:, :, None]
            + centres.square().sum(2)[:, None]
            - 2 * features @ centres.transpose(1, 2)
        )
        log_rho = self.log_mixing.log_softmax(0)[:, None, None]
        return (log_rho - 0.5 * squared * (-2 * self.log_bandwidth).exp()[:, None, None]).exp()

    def forward(self, x: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return log p(x) + constant (B,), with ``alpha`` (M,) in place of the buffer if given."""
        if x.ndim != 2 or x.shape[1] != self.inducing.shape[1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; (B, {self.inducing.shape[1]}) is needed"
            )
        kernel = self._kernels(self.features(x), self.features(self.inducing)).sum(0)
        z = (x - self.mean) * (-self.log_std).exp()
        log_q0 = -0.5 * z.square().sum(1) - self.log_std.sum()
        alpha = self.alpha if alpha is None else alpha.to(x.dtype)
        return kernel @ alpha + log_q0 - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def quadratic(self, x: Tensor) -> ScoreMatchingQuadratic:
        """Return exact score matching on rows (N, D) as a function of alpha; differentiable.

        Memory is O(R N D (M + hidden)).
        """
        features, first, second = self.features.jet(x)
        centres = self.features(self.inducing)
        k = self._kernels(features, centres)[:, :, None]  # (R, N, 1, M)
        precision = (-2 * self.log_bandwidth).exp()[:, None, None, None]
        across = centres[:, None].transpose(2, 3)  # (R, 1, F, M)
        # First and second derivatives of ||phi(x) - phi(z)||^2 / 2 along each axis: (R, N, D, M).
        along = (features[:, :, None] * first).sum(3, keepdim=True) - first @ across
        bend = (first.square() + features[:, :, None] * second).sum(3, keepdim=True)
        bend = bend - second @ across
        slope = (-k * precision * along).sum(0)
        laplacian = (k * precision * (precision * along.square() - bend)).sum(0).sum(1)
        inverse_variance = (-2 * self.log_std).exp()
        score0 = (self.mean - x) * inverse_variance
        flat = slope.flatten(0, 1).to(torch.float64)
        linear = (laplacian + (score0[:, :, None] * slope).sum(1)).to(torch.float64).mean(0)
        constant = 0.5 * score0.square().sum(1).mean() - inverse_variance.sum()
        return ScoreMatchingQuadratic(flat.T @ flat / len(x), linear, constant.to(torch.float64))

    @torch.no_grad()
    def quadratic_over(self, rows: Tensor, chunk: int = 256) -> ScoreMatchingQuadratic:
        """Return :meth:`quadratic` of many rows, without gradients, ``chunk`` rows at a time."""
        if len(rows) < 1 or chunk < 1:
            raise ValueError(f"{len(rows)} rows by {chunk}; at least 1 of each is needed")
        m = len(self.inducing)
        zero = torch.zeros((), dtype=torch.float64, device=rows.device)
        total = ScoreMatchingQuadratic(zero.new_zeros(m, m), zero.new_zeros(m), zero)
        for part in rows.split(chunk):
            for sum_, term in zip(total, self.quadratic(part), strict=True):
                sum_ += term * (len(part) / len(rows))
        return total

    @property
    def ridge(self) -> Tensor:
        """The ridge lambda > 0, a scalar."""
        return self.log_ridge.exp()

    @torch.no_grad()
    def fit_coefficients(self, rows: Tensor, chunk: int = 256) -> None:
        """Set ``alpha`` to the minimiser on rows (N, D) at the present ridge."""
        self.alpha.copy_(self.quadratic_over(rows, chunk).minimiser(self.ridge))
