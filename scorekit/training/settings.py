"""What a training run's result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from scorekit.models.conditioning import check_conditioning, default_conditioning
from scorekit.models.score_network import check_architecture
from scorekit.objectives.directions import ProjectionKind, check_projection_kind
from scorekit.objectives.score_matching import Objective, ways
from scorekit.runtime.compilation import PRECISIONS, Precision
from scorekit.techniques.ema import check_momentum
from scorekit.techniques.ema_profiles import parse_ema
from scorekit.techniques.noise_levels import check_loss_weights, check_noise_levels
from scorekit.techniques.noise_scales import geometric_sigmas

#: Far above any use, and below what would fill the memory or take for ever to count.
MAX_WIDTH, MAX_COUNT, MAX_SNAPSHOTS = 2**14, 10**9, 100_000


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a training run's result depends on beside its network, loss and data (ValueError).

    ``ema_profiles`` are averages kept beside that of ``ema_momentum``, in the words of
    :func:`scorekit.techniques.ema_profiles.parse_ema`; snapshots hold them under these words.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    adam_eps: float = 1e-8
    amsgrad: bool = False
    ema_momentum: float = 0.999
    precision: Precision = "fp32"
    snapshot_interval: int = 5000
    test_interval: int = 100
    seed: int = 0
    ema_profiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_momentum(self.ema_momentum)
        object.__setattr__(self, "ema_profiles", tuple(self.ema_profiles))  # JSON has lists
        for name in self.ema_profiles:
            if parse_ema(name).name != name or self.ema_profiles.count(name) > 1:
                raise ValueError(f"ema_profiles holds {name!r} twice, or with spaces around it")
        for name in ("iterations", "batch_size", "snapshot_interval", "test_interval"):
            if not 1 <= getattr(self, name) <= MAX_COUNT:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be at least 1 and at most {MAX_COUNT}"
                )
        if self.iterations > MAX_SNAPSHOTS * self.snapshot_interval:
            raise ValueError(
                f"snapshot_interval = {self.snapshot_interval} gives more than {MAX_SNAPSHOTS} "
                f"snapshots in iterations = {self.iterations}; make it longer"
            )
        for name in ("learning_rate", "adam_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be a positive number")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision = {self.precision!r}: one of {', '.join(PRECISIONS)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed} must lie in [0, 2**32)")

    @property
    def snapshot_iterations(self) -> list[int]:
        """The iterations whose weights are kept: every ``snapshot_interval``, and the last."""
        regular = range(self.snapshot_interval, self.iterations + 1, self.snapshot_interval)
        return sorted({*regular, self.iterations})


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RunSettings):
    """Those of a score network of Tables 2 and 3 too, and of its objective (ValueError)."""

    architecture: str
    width: int
    conditional: bool  # NCSN's network; otherwise Technique 3
    sigma_begin: float
    sigma_end: float
    n_levels: int
    flip: bool = True
    dequantisation: Literal["none", "uniform"] = "none"
    objective: Objective = "dsm"
    fd_epsilon: float | None = (
        None  # of fd_ objectives; None: scorekit.derivatives.directional's rule
    )
    projection: ProjectionKind = "rademacher"  # of sliced objectives
    noise_levels: str = "ladder"  # or one of scorekit.techniques.NOISE_LEVELS
    loss_weights: str = "own"  # of noise_levels, or one of scorekit.techniques.LOSS_WEIGHTS
    conditioning: str | None = None  # of scorekit.models.CONDITIONINGS; None: the paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        check_architecture(self.architecture)
        geometric_sigmas(self.sigma_begin, self.sigma_end, self.n_levels)
        if not 2 <= self.width <= MAX_WIDTH:
            raise ValueError(f"width = {self.width} must be at least 2 and at most {MAX_WIDTH}")
        if self.dequantisation not in ("none", "uniform"):
            raise ValueError(f"dequantisation = {self.dequantisation!r}: 'none' or 'uniform'")
        ways(self.objective, "score")
        check_projection_kind(self.projection)
        check_noise_levels(self.noise_levels)
        check_loss_weights(self.loss_weights)
        check_conditioning(self.resolved_conditioning, self.conditional)
        is_fd = self.objective.startswith("fd_")
        if is_fd and self.precision != "fp32":
            raise ValueError(
                f"objective = {self.objective!r} needs precision = 'fp32', not {self.precision!r}: "
                "differences of neighbouring scores are lost in fewer bits"
            )
        if self.fd_epsilon is not None and not (is_fd and 0 < self.fd_epsilon < float("inf")):
            raise ValueError(
                f"fd_epsilon = {self.fd_epsilon} must be a positive number, and only objectives "
                f"that begin with fd_ have one (objective = {self.objective!r})"
            )

    @property
    def sigmas(self) -> Tensor:
        """The ladder of noise scales, float32 (L,)."""
        return geometric_sigmas(self.sigma_begin, self.sigma_end, self.n_levels)

    @property
    def resolved_conditioning(self) -> str:
        """The conditioning, that of the paper where none is set."""
        return self.conditioning or default_conditioning(self.conditional)


# Fields that came later, with the value at which trainings are those of before.
_LATER = {
    "ema_profiles": (),
    "noise_levels": "ladder",
    "loss_weights": "own",
    "conditioning": None,
}


def identity(settings: RunSettings) -> dict[str, Any]:
    """Return the fields that tell a training from others: what its digests are made of.

    Without those that came later where they change nothing: digests stay as they were.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if isinstance(settings, TrainSettings):
        default = default_conditioning(settings.conditional)
        if settings.resolved_conditioning == default:
            values["conditioning"] = None
    return {
        name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]
    }


class OtherSettings(ValueError):
    """A checkpoint of a training with other settings or data than those asked for."""


def trajectory_digest(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits over a training's settings and the fingerprint of its "data".

    Without ``iterations``: a longer training goes through the states of a shorter one.
    """
    identity = {key: value for key, value in settings.items() if key != "iterations"}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_settings(state: Mapping[str, Any], digest: str, directory: str | Path) -> None:
    """Raise OtherSettings where a checkpoint's content is of another trajectory than ``digest``.

    One of before checkpoints carried digests is taken.
    """
    if (found := state.get("settings", digest)) != digest:
        raise OtherSettings(
            f"{directory}: the checkpoint of iteration {state.get('iteration')} is of other "
            f"settings or data (digest {found}, not {digest}); remove it, or train elsewhere"
        )
