"""Maximum likelihood, for models that have one."""

from typing import Protocol

from torch import Tensor


class Flow(Protocol):
    """A model whose density is known: ``log_prob`` maps samples (B, ...) to (B,), in nats."""

    def log_prob(self, x: Tensor) -> Tensor: ...


def maximum_likelihood_loss(flow: Flow, x: Tensor) -> Tensor:
    """Return -log p(x) in nats of each sample x (B, ...), (B,).

    Raises ValueError where ``log_prob`` does not return one number per sample.
    """
    log_prob = flow.log_prob(x)
    if log_prob.shape != x.shape[:1]:
        shape = tuple(log_prob.shape)
        raise ValueError(f"log_prob returned shape {shape}; ({x.shape[0]},) is needed")
    return -log_prob
