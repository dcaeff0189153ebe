"""What training can minimise, by name: each objective's loss over all noise scales.

The score matching objectives of :mod:`scorekit.objectives.score_matching`, with their randomness
from the key, and one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from kernels.philox import Stream, philox_normal
from scorekit.objectives.directions import ProjectionKind, projections
from scorekit.objectives.dsm import keyed_dsm_loss
from scorekit.objectives.score_matching import (
    OBJECTIVES,
    WAYS,
    Objective,
    annealed_score_matching_loss,
    needs_projection,
    ways,
)

Score = Callable[[Tensor, Tensor], Tensor]


class ObjectiveSettings(Protocol):
    """What an objective takes of :class:`scorekit.training.settings.TrainSettings`."""

    @property
    def projection(self) -> ProjectionKind: ...
    @property
    def fd_epsilon(self) -> float | None: ...


class ObjectiveLoss(Protocol):
    """(settings, score, x, sigmas, noise_index, key, index, step) -> the loss of each image (B,).

    ``settings`` are :class:`scorekit.training.settings.TrainSettings`, all of them.
    ``score(x, noise_index)`` is the network's. ``x`` are images (B, C, H, W) in [0, 1], to which no
    noise is added yet; ``sigmas`` (L,) and ``noise_index``, int64 (B,), tell that of each. The last
    three are as :data:`scorekit.training.loss.Loss` says: what is random is to follow from them.
    """

    def __call__(
        self,
        settings: ObjectiveSettings,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        noise_index: Tensor,
        key: Tensor,
        index: Tensor,
        step: Tensor,
        /,
    ) -> Tensor:
        """Return the loss of each image."""


@dataclass(frozen=True, kw_only=True)
class TrainingObjective:
    """An objective's loss, and whether it compiles in less than minutes."""

    loss: ObjectiveLoss
    compiles: bool = True


#: By the name that a setting gives: add to them by :func:`register_objective`.
TRAINING_OBJECTIVES: dict[str, TrainingObjective] = {}


def register_objective(name: str, loss: ObjectiveLoss, *, compiles: bool = True) -> None:
    """Give an objective a name; ValueError where it is taken.

    ``compiles`` False leaves the training step to eager mode, where torch.compile would take long
    or fail, as it does where derivatives are differentiated.
    """
    if name in TRAINING_OBJECTIVES:
        raise ValueError(f"objective = {name!r} is registered already")
    TRAINING_OBJECTIVES[name] = TrainingObjective(loss=loss, compiles=compiles)


def check_objective(name: str) -> None:
    """Raise ValueError, which lists those known, unless a score network can be trained by it."""
    if name in TRAINING_OBJECTIVES:
        return
    for known_name in OBJECTIVES:
        if known_name == name:
            ways(known_name, "score")  # which says for what it is
    known = ", ".join(TRAINING_OBJECTIVES)
    raise ValueError(f"objective = {name!r} is unknown; known: {known}")


def _dsm(
    settings: ObjectiveSettings,
    score: Score,
    x: Tensor,
    sigmas: Tensor,
    noise_index: Tensor,
    key: Tensor,
    index: Tensor,
    step: Tensor,
) -> Tensor:
    return keyed_dsm_loss(score, x, sigmas, noise_index, key, index, step)


def _score_matching(
    objective: Objective,
    settings: ObjectiveSettings,
    score: Score,
    x: Tensor,
    sigmas: Tensor,
    noise_index: Tensor,
    key: Tensor,
    index: Tensor,
    step: Tensor,
) -> Tensor:
    shape = tuple(x.shape[1:])
    v = None
    if needs_projection(objective):
        v = projections(settings.projection, key, index, step, shape)
    return annealed_score_matching_loss(
        score,
        x,
        sigmas=sigmas,
        noise_index=noise_index,
        noise=philox_normal(key, index, step, shape, Stream.PERTURBATION),
        objective=objective,
        projection=v,
        epsilon=settings.fd_epsilon,
    )


for _name, _kind in WAYS:
    if _kind == "score":
        register_objective(
            _name,
            _dsm if _name == "dsm" else partial(_score_matching, _name),
            compiles=_name in ("dsm", "fd_ssm", "fd_ssm_vr"),
        )
