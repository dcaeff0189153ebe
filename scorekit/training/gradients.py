"""Gradients summed over micro-batches and ranks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from scorekit.runtime.distributed import World


class GradientSum:
    """Gradients and a loss in one flat tensor per dtype, added up over backward passes and ranks.

    DistributedDataParallel hooks into one backward pass, which objectives that differentiate the
    network do not have; here the gradients of any objective are added when they are there.
    """

    def __init__(self, parameters: Sequence[Tensor], world: World) -> None:
        self._parameters, self._world = list(parameters), world
        self._used = [False] * len(self._parameters)
        loss = torch.zeros((), device=self._parameters[0].device)
        shapes: list[Tensor] = [*self._parameters, loss]
        sizes: dict[torch.dtype, int] = {}
        offsets = []
        for tensor in shapes:
            offsets.append(sizes.get(tensor.dtype, 0))
            sizes[tensor.dtype] = offsets[-1] + tensor.numel()
        self._flat = {
            dtype: torch.zeros(size, dtype=dtype, device=loss.device)
            for dtype, size in sizes.items()
        }
        # With the strides of the parameters, as the fused optimiser wants its gradients.
        *self._sums, self._loss = (
            self._flat[tensor.dtype].as_strided(tensor.shape, tensor.stride(), offset)
            for tensor, offset in zip(shapes, offsets, strict=True)
        )

    def clear(self) -> None:
        """Begin a new sum."""
        self._used = [False] * len(self._parameters)
        for flat in self._flat.values():
            flat.zero_()

    @torch.no_grad()
    def add(self, loss: Tensor) -> None:
        """Add the gradients that the parameters hold, which are then taken away, and the loss."""
        self._loss += loss.detach()
        sums, gradients = [], []
        for i, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                sums.append(self._sums[i])
                gradients.append(parameter.grad)
                self._used[i], parameter.grad = True, None
        torch._foreach_add_(sums, gradients)

    def finish(self) -> Tensor:
        """Give the parameters their gradients, summed over the ranks; return the summed loss."""
        for flat in self._flat.values():
            self._world.add_(flat)
        for used, parameter, total in zip(self._used, self._parameters, self._sums, strict=True):
            parameter.grad = total if used else None
        return self._loss.clone()


def micro_batches(n: int, parts: int) -> Sequence[tuple[int, int]]:
    """Return first and last (exclusive) of at most ``parts`` parts of n that differ by one."""
    bounds = [i * n // parts for i in range(parts + 1)]
    return [(a, b) for a, b in pairwise(bounds) if a < b]


def check_accumulation(accumulation: int, batch_size: int, ranks: int = 1) -> None:
    """Raise ValueError unless each rank's share of a batch has an image for each micro-batch."""
    if accumulation < 1:
        raise ValueError(f"accumulation = {accumulation} must be at least 1")
    if accumulation * ranks > batch_size:
        raise ValueError(
            f"accumulation = {accumulation} on {ranks} rank(s) needs a batch of at least "
            f"{accumulation * ranks} images; batch_size = {batch_size}"
        )
