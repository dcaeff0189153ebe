"""What any network has that is told sigma or blind to it, whatever it is made of.

The base class of the paper's networks, and of one's own that are to have all of their settings.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scorekit.models.conditioning import (
    CONDITIONINGS,
    Conditioning,
    check_conditioning,
    default_conditioning,
)


class NoiseConditionalNetwork(nn.Module):
    """A score s(x, sigma_i) on images (B, channels, H, W) in [0, 1], of a ``body`` of one's own.

    A subclass calls this and says in :meth:`body` what its layers do; conditioning, any noise scale
    and all samplers follow. ``sigmas`` is the descending ladder (L,), kept as a float32 buffer.
    ``conditional`` says whether the body is told the noise index, ``conditioning`` names one of
    :data:`scorekit.models.conditioning.CONDITIONINGS` for networks that are, or that are not;
    None is NCSN's or Technique 3's. Raises ValueError for another conditioning, or no ladder.
    """

    def __init__(
        self, sigmas: Tensor, *, conditional: bool = False, conditioning: str | None = None
    ) -> None:
        super().__init__()
        self.conditioning = conditioning or default_conditioning(conditional)
        check_conditioning(self.conditioning, conditional)
        if sigmas.ndim != 1 or len(sigmas) < 1 or not bool((sigmas > 0).all()):
            raise ValueError("sigmas must be a vector of positive noise scales")
        self.conditional = conditional
        self.sigmas: Tensor
        # The authors' NCSN checkpoints carry no ladder, their NCSNv2 checkpoints do.
        self.register_buffer("sigmas", sigmas.to(torch.float32), persistent=not conditional)

    def body(self, y: Tensor, noise_index: Tensor | None) -> Tensor:
        """Return what the layers give, of y's shape, for centred images y.

        y (B, channels, H, W) is in [-1, 1] but for its noise. ``noise_index`` (B,), 0 of the
        largest scale, is None for a network that is not ``conditional``; a float between two
        indices for scales between those of the ladder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no body(y, noise_index)")

    @property
    def n_levels(self) -> int:
        """L, the number of noise scales."""
        return len(self.sigmas)

    def features(self, x: Tensor, noise_index: Tensor | None) -> Tensor:
        """Return the network's output before any division by sigma; shapes as in ``forward``."""
        return self.body(2 * x - 1, noise_index)

    def forward(self, x: Tensor, noise_index: Tensor) -> Tensor:
        """Return the score (B, channels, H, W) at noise scales ``noise_index`` (B,), 0 largest."""
        return self._score(x, self.sigmas[noise_index], noise_index, times_sigma=False)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the score (B, channels, H, W) at any sigma > 0, a number or a tensor (B,).

        A conditional network, which knows its own L noise scales, is told the place of sigma among
        their logarithms, :meth:`place`.
        """
        return self._score(x, self._as_sigma(x, sigma), None, times_sigma=False)

    def scaled_score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return sigma * s(x, sigma), of which Technique 3's network is blind to sigma."""
        return self._score(x, self._as_sigma(x, sigma), None, times_sigma=True)

    def sampled_along(
        self, sigmas: Tensor, *, between: bool = False
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, bool]]:
        """Return what a sampler is to be given to descend a ladder, and its options.

        ``between`` says that the sampler evaluates scores at scales between those of ``sigmas``
        (:func:`scorekit.sampling.evaluates_between`). A blind network takes any scale; a told one
        its own by their indices, and others by their place among them.
        """
        if self.conditioning == "inverse_sigma":
            return self.features, {"times_sigma": True}
        own = torch.equal(sigmas.to(self.sigmas), self.sigmas)
        if CONDITIONINGS[self.conditioning].told and own and not between:
            return self, {}
        return self.scaled_score, {"times_sigma": True, "takes_sigma": True}

    def place(self, sigma: Tensor) -> Tensor:
        """Return the noise index of sigma (B,), linear in ln sigma between two of the ladder.

        That of the ladder's end for scales beyond it.
        """
        if len(self.sigmas) == 1:
            return torch.zeros_like(sigma)
        logs, log = self.sigmas.log().to(sigma.dtype), sigma.log()
        below = torch.searchsorted(-logs, -log, right=True) - 1
        below = below.clamp(0, len(self.sigmas) - 2)
        upper, lower = logs[below], logs[below + 1]
        return below + ((upper - log) / (upper - lower)).clamp(0, 1)

    @staticmethod
    def _as_sigma(x: Tensor, sigma: Tensor | float) -> Tensor:
        return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)

    def _score(
        self, x: Tensor, sigma: Tensor, noise_index: Tensor | None, *, times_sigma: bool
    ) -> Tensor:
        """Return the score, or sigma times it, at ``sigma`` (B,) or (1,), at ``noise_index``."""
        way: Conditioning = CONDITIONINGS[self.conditioning]
        if way.told and noise_index is None:
            noise_index = self.place(sigma).expand(x.shape[0])
        sigma = sigma.reshape(-1, 1, 1, 1)
        y = 2 * x - 1
        output = self.body(
            y if way.c_in is None else way.c_in(sigma) * y, noise_index if way.told else None
        )
        output = way.output(output, y, sigma)
        if way.times_sigma == times_sigma:
            return output
        return sigma * output if times_sigma else output / sigma

    def n_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


def sampled_along(
    network: nn.Module, sigmas: Tensor, *, between: bool = False
) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, bool]]:
    """Return what a sampler is to be given to descend a ladder, and its options, for any network.

    Arguments as :meth:`NoiseConditionalNetwork.sampled_along`. Of other modules than those, one
    with a method ``score(x, sigma)`` takes any scale, and one without knows the noise scales that
    it was trained on alone, by their indices; ValueError where others are needed.
    """
    if isinstance(network, NoiseConditionalNetwork):
        return network.sampled_along(sigmas, between=between)
    score = getattr(network, "score", None)
    if score is not None:
        return score, {"takes_sigma": True}
    if between:
        raise ValueError(
            f"{type(network).__name__} has no score(x, sigma): it knows its own noise scales only"
        )
    return network, {}
