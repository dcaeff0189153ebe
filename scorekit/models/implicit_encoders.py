"""Auto-encoders whose encoder has samples but no density: implicit VAE and WAE.

The encoder maps an image and noise to a latent vector, so log q is not known; but all that training
wants of it is the gradient of an entropy, and that is the score of q, which score matching learns
from latent samples (Song et al. 2019, "Sliced score matching"). The VAE needs the score of q(z|x),
given the image; the WAE that of the aggregated q(z).
"""

import math
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.models.mlp import MLP


class ImplicitEncoder(nn.Module):
    """z = f(x, noise): samples of q(z|x), whose density is not known.

    ``shape`` is an image's (C, H, W), such as (1, 8, 8) of the digits or (1, 28, 28) of MNIST. The
    authors' latent dimension is 32.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_dim: int = 32,
        noise_dim: int = 32,
        width: int = 256,
        n_hidden: int = 2,
    ) -> None:
        super().__init__()
        if noise_dim < 1:
            raise ValueError(f"noise_dim = {noise_dim} must be at least 1")
        self.shape, self.noise_dim = shape, noise_dim
        self.network = MLP(prod(shape) + noise_dim, latent_dim, width, n_hidden, "silu")

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] and N(0, I) noise (B, noise_dim) to (B, latent_dim)."""
        if images.shape[1:] != self.shape or noise.shape != (len(images), self.noise_dim):
            needed = ", ".join(map(str, self.shape))
            raise ValueError(
                f"images have shape {tuple(images.shape)} and noise {tuple(noise.shape)}; "
                f"(B, {needed}) and (B, {self.noise_dim}) are needed"
            )
        return self.network(torch.cat([2 * images.flatten(1) - 1, noise], dim=1))


class Decoder(nn.Module):
    """Map latents (B, latent_dim) to the logits of Bernoulli pixels, (B, C, H, W)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_dim: int = 32,
        width: int = 256,
        n_hidden: int = 2,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.network = MLP(latent_dim, prod(shape), width, n_hidden, "silu")

    def forward(self, z: Tensor) -> Tensor:
        return self.network(z).reshape(-1, *self.shape)


class LatentScore(nn.Module):
    """A score network on latents (B, latent_dim): of q(z), or of q(z|x) with ``condition_dim``."""

    def __init__(
        self, latent_dim: int = 32, condition_dim: int = 0, width: int = 256, n_hidden: int = 2
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.network = MLP(latent_dim + condition_dim, latent_dim, width, n_hidden, "silu")

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the score in z, (B, latent_dim), given (B, ...) of ``condition_dim`` numbers.

        Where z has a multiple of B rows, copies one after another, the condition is repeated to fit
        (finite differences evaluate copies at once).
        """
        size = 0 if condition is None else condition[0].numel()
        if size != self.condition_dim:
            raise ValueError(f"condition has {size} numbers; {self.condition_dim} are needed")
        if condition is None:
            return self.network(z)
        copies, rest = divmod(len(z), len(condition))
        if rest:
            raise ValueError(
                f"z has {len(z)} rows, no multiple of the condition's {len(condition)}"
            )
        return self.network(torch.cat([z, condition.flatten(1).repeat(copies, 1)], dim=1))


def entropy_gradient_surrogate(z: Tensor, score: Tensor) -> Tensor:
    """Return -z . stopgrad(score), (B,), whose gradient's mean is that of the entropy of z.

    For z = f_phi(noise) with density q_phi, grad H = -E[grad_z log q(z) . dz/dphi]; the term
    E[grad_phi log q] is 0 (Li & Turner 2018). ``z`` and ``score`` = grad log q(z) are
    (B, D). The value means nothing.
    """
    if z.shape != score.shape:
        raise ValueError(f"score has shape {tuple(score.shape)}; z's {tuple(z.shape)} is needed")
    return -(z * score.detach()).flatten(1).sum(1)


class AutoencoderLoss(NamedTuple):
    """``surrogate`` (B,) to descend, ``reconstruction`` (B,) in nats, and the latents ``z``.

    ``z`` is detached: the rows on which the score network is to be trained.
    """

    surrogate: Tensor
    reconstruction: Tensor
    z: Tensor


def implicit_autoencoder_loss(
    encoder: Callable[[Tensor, Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    noise: Tensor,
    *,
    kl_weight: float = 1.0,
) -> AutoencoderLoss:
    """Return a loss with the gradient of reconstruction + kl_weight KL(q || N(0, I)).

    Reconstruction is the Bernoulli cross-entropy summed over pixels; KL is -H(q) - E[log N(z)].
    VAE: ``score`` is that of q(z|x) at the images (close over them), and with weight 1 the loss is
    the negative evidence bound (Kingma & Welling 2014). WAE: it is that of the aggregated q(z), and
    KL the divergence of Tolstikhin et al. (2018) from the prior. To be descended in encoder and
    decoder alone: no gradient reaches the score network, which score matching trains on ``z``.
    """
    z = encoder(images, noise)
    with torch.no_grad():
        at = score(z.detach())
    logits = decoder(z)
    cross_entropy = binary_cross_entropy_with_logits(logits, images, reduction="none")
    reconstruction = cross_entropy.flatten(1).sum(1)
    divergence = 0.5 * z.square().sum(1) - entropy_gradient_surrogate(z, at)
    return AutoencoderLoss(
        surrogate=reconstruction + kl_weight * divergence,
        reconstruction=reconstruction.detach(),
        z=z.detach(),
    )


class LikelihoodBound(NamedTuple):
    """``log_likelihood`` (B,) in nats, a lower bound on average, and its ``effective_sample_size``.

    The latter (B,) lies between 1 and the number of importance samples; small, the bound is loose.
    """

    log_likelihood: Tensor
    effective_sample_size: Tensor


@torch.no_grad()
def likelihood_bound(
    encoder: ImplicitEncoder,
    decoder: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    seed: int = 0,
    n_fitted: int = 256,
    n_importance: int = 512,
) -> LikelihoodBound:
    """Return an importance-weighted bound on log p(x), p(x|z) Bernoulli, z ~ N(0, I), per image.

    log 1/K sum_k p(x|z_k) N(z_k) / r(z_k), z_k ~ r(z|x), whose mean is at most log p(x) and tends
    to it with K = ``n_importance`` whatever r is (Burda et al. 2016, Eq. 8). The density of an
    implicit encoder is not known, so r is a Gaussian with the mean and covariance of ``n_fitted``
    of its samples, which other noise than the z_k's gave. ``images`` is (B, C, H, W) in [0, 1].
    Raises ValueError unless there are more samples to fit than latent dimensions.
    """
    key = philox_key(seed, images.device)

    def normal(n: int, dim: int, image: int, purpose: int) -> Tensor:
        index = torch.arange(n, device=images.device)
        step = torch.tensor(2 * image + purpose, device=images.device)
        return philox_normal(key, index, step, (dim,), Stream.PERTURBATION)

    likelihoods, sizes = [], []
    for i, image in enumerate(images):
        noise = normal(n_fitted, encoder.noise_dim, i, 0)
        z = encoder(image.expand(n_fitted, *image.shape), noise).double()
        dim = z.shape[1]
        if n_fitted <= dim or n_importance < 1:
            raise ValueError(
                f"n_fitted = {n_fitted} and n_importance = {n_importance}: more than {dim}, the "
                "latent dimension, and at least 1 are needed"
            )
        # An encoder that ignores its noise has no covariance; r needs one.
        covariance = torch.cov(z.T).reshape(dim, dim) + 1e-6 * torch.eye(dim).to(z)
        factor = torch.linalg.cholesky(covariance)
        standard = normal(n_importance, dim, i, 1).double()
        drawn = z.mean(0) + standard @ factor.T
        # log N(z) - log r(z); the constants are equal.
        weights = 0.5 * (standard.square() - drawn.square()).sum(1)
        weights += factor.diagonal().log().sum()
        logits = decoder(drawn.to(images.dtype))
        target = image.expand_as(logits)
        entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
        weights -= entropy.double().flatten(1).sum(1)
        likelihoods.append(weights.logsumexp(0) - math.log(n_importance))
        sizes.append((2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp())
    return LikelihoodBound(torch.stack(likelihoods), torch.stack(sizes))
