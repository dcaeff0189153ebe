"""How a network's output becomes a score: told the noise scale or blind, preconditioned or plain.

Technique 3 (Song & Ermon 2020) is blind and preconditioned, NCSN's conditional normalisation told
and plain; these are two of the four corners.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: sd of Karras et al. 2022 for images in [-1, 1], as networks see them.
_SD = 0.5


def _as_it_is(output: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    return output


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What surrounds a network F on centred images y = 2 x - 1 of noise 2 sigma.

    ``told``: its normalisation layers have parameters for each noise scale. ``c_in(sigma)``
    multiplies y; ``output(F, y, sigma)`` is sigma s(x, sigma) where ``times_sigma`` and s(x, sigma)
    itself elsewhere. sigma is (B, 1, 1, 1), in units of images in [0, 1].
    """

    told: bool
    times_sigma: bool
    output: Callable[[Tensor, Tensor, Tensor], Tensor] = _as_it_is
    c_in: Callable[[Tensor], Tensor] | None = None


def _edm_c_in(sigma: Tensor) -> Tensor:
    return torch.rsqrt((2 * sigma).square() + _SD**2)


def _edm_output(output: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    """(D - y) / sigma_y with D = c_skip y + c_out F, sigma_y = 2 sigma (Karras et al., Table 1)."""
    sigma = 2 * sigma
    total = sigma.square() + _SD**2
    # c_skip - 1 and c_out, each over sigma.
    return _SD * torch.rsqrt(total) * output - sigma / total * y


#: By the name that a setting gives: add to them by :func:`register_conditioning`.
CONDITIONINGS: dict[str, Conditioning] = {
    "normalisation": Conditioning(told=True, times_sigma=False),  # NCSN
    "inverse_sigma": Conditioning(told=False, times_sigma=True),  # Technique 3
    # Karras et al. 2022, told by the normalisation layers in place of their c_noise.
    "edm": Conditioning(told=True, times_sigma=True, output=_edm_output, c_in=_edm_c_in),
    "none": Conditioning(told=False, times_sigma=False),
}


def default_conditioning(conditional: bool) -> str:
    """Return the paper's: NCSN's normalisation for told networks, Technique 3 for blind ones."""
    return "normalisation" if conditional else "inverse_sigma"


def check_conditioning(name: str, conditional: bool) -> None:
    """Raise ValueError unless the name is registered, and told where a network is conditional."""
    if name not in CONDITIONINGS:
        raise ValueError(f"conditioning = {name!r}: one of {', '.join(CONDITIONINGS)}")
    if CONDITIONINGS[name].told != conditional:
        told = CONDITIONINGS[name].told
        raise ValueError(
            f"conditioning = {name!r} is {'told' if told else 'blind to'} the noise scale: it "
            f"needs conditional = {told}, not {conditional}"
        )


def register_conditioning(name: str, conditioning: Conditioning) -> None:
    """Give a conditioning of one's own a name; ValueError where it is taken."""
    if name in CONDITIONINGS:
        raise ValueError(f"conditioning = {name!r} is registered already")
    CONDITIONINGS[name] = conditioning
