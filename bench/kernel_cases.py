"""Cases of the kernels: each operation as it is called, against plain torch in eager mode."""

import math

import torch
from torch import Tensor

from bench import plain
from bench.registry import Pair, Setting, case, n_bytes
from kernels.dsm import dsm_residual_loss, perturb
from kernels.instance_norm_plus import instance_norm_plus
from kernels.langevin_step import langevin_step
from kernels.max_pairwise_distance import max_pairwise_distance
from kernels.mixture_score import mixture_score
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.models.score_network import ScoreNetwork
from scorekit.techniques.ema import ema_update


def _images(setting: Setting, batch: int) -> tuple[int, ...]:
    return (setting.size(batch, 2), 3, setting.size(32, 4), setting.size(32, 4))


def _counter(setting: Setting, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return key, sample indices and step of a call."""
    index = torch.arange(batch, device=setting.device)
    return philox_key(0, setting.device), index, torch.tensor(7, device=setting.device)


def _langevin(setting: Setting, batch: int) -> Pair:
    shape = _images(setting, batch)
    x, score = setting.normal(*shape), setting.normal(*shape, seed=1)
    alpha = torch.tensor(1e-4, device=setting.device)
    root = torch.sqrt(2 * alpha)
    counter = _counter(setting, shape[0])
    start = x.clone()
    # In place, as the sampler calls it.
    step = setting.compile(lambda x, *arguments: langevin_step(x, *arguments, out=x))
    return Pair(
        candidate=lambda: step(start, score, alpha, *counter),
        reference=lambda: x + alpha * score + root * torch.randn_like(x),
        random=True,
        bytes_moved=3 * n_bytes(x),
    )


def _philox(setting: Setting, batch: int) -> Pair:
    shape = _images(setting, batch)
    counter = _counter(setting, shape[0])
    normal = setting.compile(
        lambda key, index, step: philox_normal(key, index, step, shape[1:], Stream.LANGEVIN)
    )
    return Pair(
        candidate=lambda: normal(*counter),
        reference=lambda: torch.randn(shape, device=setting.device),
        random=True,
        bytes_moved=4 * math.prod(shape),
    )


@case("langevin_step[16x3x32x32]", "kernel")
def _(setting: Setting) -> Pair:
    return _langevin(setting, 16)


@case("langevin_step[128x3x32x32]", "kernel")
def _(setting: Setting) -> Pair:
    return _langevin(setting, 128)


@case("philox_normal[16x3x32x32]", "kernel")
def _(setting: Setting) -> Pair:
    return _philox(setting, 16)


@case("philox_normal[128x3x32x32]", "kernel")
def _(setting: Setting) -> Pair:
    return _philox(setting, 128)


def _norm_inputs(setting: Setting) -> tuple[Tensor, ...]:
    channels, side = setting.size(128, 4), setting.size(32, 4)
    x = setting.normal(setting.size(16, 2), channels, side, side)
    return (x, *(setting.normal(channels, seed=seed) for seed in (1, 2, 3)))


@case("instance_norm_plus[16x128x32x32]", "kernel")
def _(setting: Setting) -> Pair:
    inputs = _norm_inputs(setting)
    function = setting.compile(
        lambda x, gamma, alpha, beta: instance_norm_plus(x, gamma, alpha, beta, activation="elu")
    )
    return Pair(
        candidate=lambda: function(*inputs),
        reference=lambda: plain.instance_norm_plus(*inputs, activation="elu"),
        bytes_moved=2 * n_bytes(inputs[0]),
    )


@case("instance_norm_plus[16x128x32x32, forward+backward]", "kernel")
def _(setting: Setting) -> Pair:
    inputs = _norm_inputs(setting)
    gradient = setting.normal(*inputs[0].shape, seed=4)
    for tensor in inputs:
        tensor.requires_grad_()
    function = setting.compile(
        lambda x, gamma, alpha, beta: instance_norm_plus(x, gamma, alpha, beta, activation="elu")
    )
    return Pair(
        candidate=lambda: torch.autograd.grad(function(*inputs), inputs, gradient),
        reference=lambda: torch.autograd.grad(
            plain.instance_norm_plus(*inputs, activation="elu"), inputs, gradient
        ),
        # x read and the output written, then x and the output's gradient read, x's written.
        bytes_moved=5 * n_bytes(gradient),
    )


@case("dsm[128x3x32x32, perturb+loss+backward]", "kernel")
def _(setting: Setting) -> Pair:
    shape = _images(setting, 128)
    x, score = setting.normal(*shape), setting.normal(*shape, seed=1).requires_grad_()
    sigma = torch.linspace(0.01, 10, shape[0], device=setting.device)
    counter = _counter(setting, shape[0])
    perturbed, residual = setting.compile(perturb), setting.compile(dsm_residual_loss)

    def candidate() -> tuple[Tensor, ...]:
        loss = residual(score, sigma, *counter).mean()
        return perturbed(x, sigma, *counter), loss, *torch.autograd.grad(loss, score)

    def reference() -> tuple[Tensor, ...]:
        scale = sigma[:, None, None, None]
        z = torch.randn_like(x)
        noisy = x + scale * z
        loss = (0.5 * (scale * score + z).flatten(1).square().sum(1)).mean()
        return noisy, loss, *torch.autograd.grad(loss, score)

    # x read, the noisy images written; the score read twice, its gradient written.
    return Pair(candidate=candidate, reference=reference, random=True, bytes_moved=5 * n_bytes(x))


@case("mixture_score[64x3072, 4096 centres]", "kernel")
def _(setting: Setting) -> Pair:
    n, dim, centres = setting.size(64, 3), setting.size(3072, 6), setting.size(4096, 5)
    data = setting.normal(centres, dim)
    x = data[:n] + setting.normal(n, dim, seed=1)
    sigma = torch.tensor(20.0, device=setting.device)

    def reference() -> Tensor:
        """Proposition 1's score through the whole matrix of responsibilities (n, centres)."""
        weights = torch.softmax(-torch.cdist(x, data).square() / (2 * sigma**2), dim=1)
        return (weights @ data - x) / sigma**2

    return Pair(
        candidate=lambda: mixture_score(x, data, sigma),
        reference=reference,
        bytes_moved=n_bytes(data, x, x),
        flops=2 * 2 * n * centres * dim,
    )


@case("max_pairwise_distance[2048x3072 Gaussian]", "data")
def _(setting: Setting) -> Pair:
    n, dim = setting.size(2048, 7), setting.size(3072, 5)
    rows = setting.normal(n, dim)

    def reference() -> float:
        whole = rows.double()
        return max(float(torch.cdist(block, whole).max()) for block in whole.split(512))

    return Pair(
        candidate=lambda: max_pairwise_distance(rows)[0],
        reference=reference,
        bytes_moved=n_bytes(rows),
        flops=n * n * dim,  # one half of the matrix of products
    )


@case("ema_update[29.7 M parameters]", "training")
def _(setting: Setting) -> Pair:
    sigmas = torch.ones(2)
    with torch.device("meta"):
        network = ScoreNetwork("32-64", sigmas, width=setting.size(128, 2))
    ours = [setting.normal(*p.shape) for p in network.parameters()]
    theirs = [tensor.clone() for tensor in ours]
    weights = [setting.normal(*p.shape, seed=1) for p in network.parameters()]

    def candidate() -> list[Tensor]:
        ema_update(ours, weights, 0.999)
        return ours

    @torch.no_grad()
    def reference() -> list[Tensor]:
        for averaged, parameter in zip(theirs, weights, strict=True):
            averaged.lerp_(parameter, 1 - 0.999)
        return theirs

    return Pair(candidate=candidate, reference=reference, bytes_moved=3 * n_bytes(*weights))
