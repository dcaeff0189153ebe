"""What training draws noise scales from, and weighs them by: alternatives to a ladder's L.

Each is a function of the key, the places of images in the batch and the step, as all noise is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.philox import Stream, philox_normal, philox_uniform

#: Standard deviation of images in [0, 1]: half that of Karras et al. 2022, whose are in [-1, 1].
DATA_SD = 0.25
#: Mean and standard deviation of ln sigma in Karras et al. 2022, Table 1, halved likewise.
LOG_MEAN, LOG_SD = -1.2 - math.log(2), 1.2


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """A distribution of noise scales, and the weights that go with it.

    ``draw(key, index, step, sigma_begin, sigma_end)`` returns sigma > 0, float32 (B,), of the
    images at places ``index`` (B,); arguments as in :func:`kernels.philox.philox_normal`.
    ``weight(sigma)`` (B,) multiplies the loss of each image, which is already Eq. (2)'s with
    lambda = sigma^2.
    """

    draw: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    weight: Callable[[Tensor], Tensor] | None = None


def log_uniform_sigmas(
    key: Tensor, index: Tensor, step: Tensor, sigma_begin: float, sigma_end: float
) -> Tensor:
    """Return sigma, log-uniform in [sigma_L, sigma_1], (B,) (Song et al. 2021, App. C).

    The limit of the geometric ladder for L to infinity.
    """
    u = philox_uniform(key, index, step, (1,), Stream.NOISE_LEVEL)[:, 0]
    return torch.exp(math.log(sigma_end) + u * math.log(sigma_begin / sigma_end))


def log_normal_sigmas(
    key: Tensor, index: Tensor, step: Tensor, sigma_begin: float, sigma_end: float
) -> Tensor:
    """Return sigma with ln(2 sigma) ~ N(-1.2, 1.2^2), (B,) (Karras et al. 2022, Table 1).

    Made for images in [-1, 1] and halved here; the ladder's ends play no part.
    """
    z = philox_normal(key, index, step, (1,), Stream.NOISE_LEVEL)[:, 0]
    return torch.exp(LOG_MEAN + LOG_SD * z)


def denoising_weight(sigma: Tensor, data_sd: float = DATA_SD) -> Tensor:
    """Return 1 + (sigma / sd)^2 (Karras et al. 2022, Table 1).

    Their (sigma^2 + sd^2) / (sigma sd)^2 weights ||D - x||^2, which is sigma^2 times what Eq. (2)
    of Song & Ermon 2020 has with lambda = sigma^2.
    """
    return 1 + (sigma / data_sd).square()


def min_snr_weight(sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Return min(1, gamma (2 sigma)^2) (Hang et al. 2023, arXiv:2303.09556).

    Their min(SNR, gamma) weights ||D - y||^2 of images y in [-1, 1], and SNR is 1 / (2 sigma)^2
    where noise is added and the image left as bright as it is; Eq. (2) of Song & Ermon 2020 has
    (2 sigma)^2 less of it. What is made smaller is the weight of small noise.
    """
    return (gamma * (2 * sigma).square()).clamp(max=1)


#: Weights of the loss by sigma, beside "own", those of the noise levels. "equal" is Eq. (2) with
#: lambda = sigma^2, which is the likelihood weighting (Song et al. 2021, arXiv:2101.09258) where
#: scales are even in ln sigma: g^2 of the VE SDE is then proportional to sigma^2.
LOSS_WEIGHTS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "equal": None,
    "min_snr": min_snr_weight,
}


def check_loss_weights(name: str) -> None:
    """Raise ValueError, which lists those known, unless the name is "own" or in LOSS_WEIGHTS."""
    if name != "own" and name not in LOSS_WEIGHTS:
        raise ValueError(f"loss_weights = {name!r}: one of {', '.join(['own', *LOSS_WEIGHTS])}")


#: By the name that a setting gives: add to them by :func:`register_noise_levels`.
NOISE_LEVELS: dict[str, NoiseLevels] = {
    "log_uniform": NoiseLevels(draw=log_uniform_sigmas),
    "log_normal": NoiseLevels(draw=log_normal_sigmas, weight=denoising_weight),
}


def register_noise_levels(name: str, levels: NoiseLevels) -> None:
    """Give a distribution of one's own a name; ValueError where it is taken."""
    if name == "ladder" or name in NOISE_LEVELS:
        raise ValueError(f"noise_levels = {name!r} is registered already")
    NOISE_LEVELS[name] = levels


def check_noise_levels(name: str) -> None:
    """Raise ValueError, which lists those known, unless the name is "ladder" or registered."""
    if name != "ladder" and name not in NOISE_LEVELS:
        raise ValueError(f"noise_levels = {name!r}: one of {', '.join(['ladder', *NOISE_LEVELS])}")
