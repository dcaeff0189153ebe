"""The references of the network cases: the same networks as plain PyTorch would run them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import elu

from scorekit.models.score_network import ScoreNetwork
from scorekit.objectives.dsm import dsm_loss


def instance_norm_plus(
    x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, *, activation: str = "none"
) -> Tensor:
    """InstanceNorm++ (Song & Ermon 2019, App. A), written down as in the paper."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    across, centre = torch.var_mean(mean, dim=1, keepdim=True)
    means = (mean - centre) / torch.sqrt(across + 1e-5)
    normal = (x - mean[..., None, None]) / torch.sqrt(variance + 1e-5)[..., None, None]
    shifted = gamma[:, None, None] * (normal + (alpha * means)[..., None, None])
    result = shifted + beta[:, None, None]
    return elu(result) if activation == "elu" else result


@contextmanager
def unfused() -> Iterator[None]:
    """Run the networks' normalisations and ELUs as torch's own single operations."""
    with (
        mock.patch("scorekit.models.layers.instance_norm_plus", instance_norm_plus),
        mock.patch("scorekit.models.layers.elu", elu),
    ):
        yield


class SamplingStep:
    """One Langevin step in eager float32, contiguous, with noise of ``randn_like``."""

    def __init__(self, network: ScoreNetwork, x: Tensor) -> None:
        self.network, self.x = network, x
        self.level = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.alpha = torch.tensor(1e-6, device=x.device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        with unfused():
            score = self.network(self.x, self.level)
        noise = torch.randn_like(self.x)
        self.x = self.x + self.alpha * score + torch.sqrt(2 * self.alpha) * noise
        return self.x


class TrainingStep:
    """One step of DSM training in eager float32, contiguous: torch's Adam, EMA by parameter."""

    def __init__(self, network: ScoreNetwork, images: Tensor, learning_rate: float) -> None:
        self.network, self.images = network, images
        self.parameters = list(network.parameters())
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)

    def __call__(self) -> Tensor:
        device = self.images.device
        x = self.images.float() / 255
        flip = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
        x = torch.where(flip, x.flip(-1), x)
        level = torch.randint(self.network.n_levels, (len(x),), device=device)
        self.optimizer.zero_grad()
        with unfused():
            loss = dsm_loss(self.network, x, self.network.sigmas, level, torch.randn_like(x))
        loss = loss.mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(self.averaged, self.parameters, strict=True):
                averaged.mul_(0.999).add_(parameter, alpha=0.001)
        return loss.detach()
