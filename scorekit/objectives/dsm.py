"""Training objectives of score networks and flows."""

from collections.abc import Callable

from torch import Tensor

from kernels.dispatch import use_triton
from kernels.dsm import dsm_residual_loss, perturb
from kernels.philox import Stream, philox_normal


def dsm_loss(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    sigmas: Tensor,
    noise_index: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the annealed DSM loss of each image (Song & Ermon 2020, Eq. 2).

    1/2 ||sigma s(x~, sigma) + (x~ - x) / sigma||^2, x~ = x + sigma z, one noise scale per image.
    ``images`` and ``noise`` are (B, C, H, W), ``sigmas`` (L,), ``noise_index`` int64 (B,); the
    result is (B,), whose mean over images and uniform noise indices estimates Eq. (2). A score of
    zero gives D/2 on average.
    """
    sigma = sigmas[noise_index].reshape(-1, 1, 1, 1)
    residual = sigma * score(images + sigma * noise, noise_index).to(noise.dtype) + noise
    return 0.5 * residual.flatten(1).square().sum(dim=1)


def keyed_dsm_loss(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    sigmas: Tensor,
    noise_index: Tensor,
    key: Tensor,
    sample_index: Tensor,
    step: Tensor,
) -> Tensor:
    """Return :func:`dsm_loss` with the noise of (key, sample_index, step), stream PERTURBATION.

    On a GPU the noise is made where it is used, in the forward and in the backward pass, and never
    stored; elsewhere it is an array. Arguments as there and in
    :func:`kernels.philox.philox_normal`.
    """
    if not use_triton("dsm_loss", "auto", images):
        shape = tuple(images.shape[1:])
        noise = philox_normal(key, sample_index, step, shape, Stream.PERTURBATION)
        return dsm_loss(score, images, sigmas, noise_index, noise)
    sigma = sigmas[noise_index]
    perturbed = perturb(images, sigma, key, sample_index, step)
    return dsm_residual_loss(score(perturbed, noise_index), sigma, key, sample_index, step)
