"""What each budget sets for the experiments of the study."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from ablations.engine.settings import Budget, setting
from scorekit.techniques.ema import check_momentum

#: Whole numbers are at least 1, and these at least so much.
_LEAST = {
    "loss_evaluations": 2,
    "cost_rounds": 2,
    "flow_evaluations": 2,
    "flow_n_couplings": 0,
    "implicit_warm_up": 0,
    "implicit_held_out": 2,
    "implicit_samples": 2,
    "distance_samples": 2,
}


def _seeds(count: int, of: str) -> Any:
    return setting(count, f"{of}: trainings, each with its own seed", "seeds")


#: What several parts set.
_steps = partial(setting, words="training steps", unit="steps")
_batch = partial(setting, words="samples of a step", unit="samples")
_width = partial(setting, words="units of a hidden layer, or channels of the first", unit="units")
_rate = partial(setting, words="learning rate of Adam")
_noise = partial(setting, words="standard deviation of the noise on the data")
_displacement = partial(setting, words="length of a finite difference's displacement")
_times = partial(setting, words="measurements over training", unit="times")
_held_out = partial(setting, words="images that are measured and not trained on", unit="images")
_samples = partial(setting, words="samples whose distance is measured", unit="images")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a budget sets, part by part; field names are the keys of ``--set``.

    ``dkef_*`` and ``wine_seeds`` are of the part "epsilon", and so are ``deep_*``, whose networks
    and data are those of ``loss_*``, and ``gradient_*``.
    """

    toy_seeds: int = _seeds(5, "Fig. A(d)")
    toy_iterations: int = _steps(3000)
    toy_batch_size: int = setting(128, "points of a step", "points")
    toy_width: int = _width(128)
    toy_learning_rate: float = _rate(1e-3)
    toy_epsilon: float = _displacement(0.1)
    toy_grid: int = setting(
        64, "points of a side of the grid that the field is compared on", "points"
    )
    loss_seeds: int = _seeds(5, "Fig. A(a), (b)")
    loss_iterations: int = _steps(20_000)
    loss_batch_size: int = _batch(64)
    loss_width: int = _width(128)
    loss_blocks: int = setting(8, "residual blocks of the energy", "blocks")
    loss_learning_rate: float = _rate(1e-3)
    loss_epsilon: float = _displacement(0.1)
    loss_sigma: float = _noise(0.3)
    loss_held_out: int = _held_out(256)
    loss_evaluations: int = _times(40)
    distance_seeds: int = _seeds(5, "Fig. A(c)")
    distance_iterations: int = _steps(200_000)
    distance_snapshots: int = setting(10, "snapshots over training that are sampled", "snapshots")
    distance_batch_size: int = _batch(128)
    distance_width: int = _width(128)
    distance_learning_rate: float = _rate(1e-4)
    distance_ema_momentum: float = setting(0.999, "momentum of the averaged weights")
    distance_n_steps_each: int = setting(5, "Langevin steps T at each noise scale", "steps")
    distance_samples: int = _samples(1000)
    flow_seeds: int = _seeds(5, "flows")
    flow_iterations: int = _steps(20_000)
    flow_batch_size: int = _batch(128)
    flow_width: int = _width(1000)
    flow_n_hidden: int = setting(5, "hidden layers of a coupling", "layers")
    flow_n_couplings: int = setting(4, "couplings; 0 leaves the scaling alone", "couplings")
    flow_learning_rate: float = _rate(1e-3)
    flow_epsilon: float = _displacement(0.1)
    flow_sigma: float = _noise(0.3)
    flow_held_out: int = _held_out(10_000)
    flow_n_exact: int = setting(64, "images that exact score matching is computed of", "images")
    flow_evaluations: int = _times(20)
    implicit_seeds: int = _seeds(5, "implicit encoders")
    implicit_iterations: int = _steps(100_000)
    implicit_warm_up: int = setting(
        100, "steps of the score network before the auto-encoder's first", "steps"
    )
    implicit_batch_size: int = _batch(128)
    implicit_latent_dim: int = setting(32, "latent dimensions", "dimensions")
    implicit_width: int = _width(256)
    implicit_score_steps: int = setting(
        2, "steps of the score network for each of the auto-encoder", "steps"
    )
    implicit_learning_rate: float = _rate(1e-4)
    implicit_score_learning_rate: float = setting(
        1e-3, "learning rate of Adam, of the score network"
    )
    implicit_epsilon: float = _displacement(0.1)
    implicit_held_out: int = _held_out(10_000)
    implicit_n_bound: int = setting(
        256, "images that the bound of the likelihood is computed of", "images"
    )
    implicit_samples: int = _samples(1000)
    deep_seeds: int = _seeds(5, "deep energies")
    deep_iterations: int = _steps(10_000)
    gradient_seeds: int = _seeds(3, "gradients by ε")
    gradient_iterations: int = _steps(200)
    gradient_width: int = _width(64)
    gradient_batch_size: int = _batch(16)
    dkef_seeds: int = _seeds(5, "DKEF")
    dkef_max_steps: int = setting(10_000, "training steps at most", "steps")
    dkef_interval: int = setting(20, "steps from validation to validation", "steps")
    dkef_inducing: int = setting(200, "inducing points", "points")
    dkef_batch_size: int = _batch(200)
    dkef_importance: int = setting(1_000_000, "samples that estimate the normaliser", "samples")
    dkef_around: int = setting(
        1000, "training rows that the second estimate's samples lie around", "rows"
    )
    wine_seeds: int = _seeds(5, "DKEF on wine")
    wine_all: bool = setting(True, "every epsilon; otherwise the largest and the smallest")
    cost_rounds: int = setting(20, "rounds of timing", "rounds")
    cost_mlp_width: int = _width(128)
    cost_mlp_batch_size: int = _batch(128)
    cost_conv_width: int = _width(64)
    cost_conv_batch_size: int = _batch(16)
    cost_score_width: int = _width(128)
    cost_score_batch_size: int = _batch(32)
    compile: bool = setting(False, "compiled rows beside the eager ones of cost")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            if isinstance(value, int):
                least = _LEAST.get(field.name, 1)
                if value < least:
                    raise ValueError(f"{field.name} = {value} must be at least {least}")
            elif field.name.endswith("ema_momentum"):
                check_momentum(value)
            elif not 0 < value < float("inf"):
                raise ValueError(f"{field.name} = {value} must be a positive number")


_EFFORTS = {
    "paper": Effort(),
    "hour": Effort(
        loss_seeds=3,
        loss_iterations=4000,
        loss_width=64,
        loss_held_out=128,
        loss_evaluations=20,
        distance_seeds=3,
        distance_iterations=10_000,
        distance_snapshots=5,
        distance_width=64,
        distance_samples=500,
        flow_seeds=3,
        flow_iterations=4000,
        flow_width=256,
        flow_n_hidden=3,
        implicit_seeds=3,
        implicit_iterations=10_000,
        deep_seeds=3,
        deep_iterations=2000,
        dkef_seeds=3,
        dkef_max_steps=1000,
        dkef_importance=400_000,
        wine_seeds=3,
        cost_score_width=64,
        cost_score_batch_size=16,
    ),
    "quick": Effort(
        toy_seeds=3,
        loss_seeds=3,
        loss_iterations=240,
        loss_batch_size=48,
        loss_width=24,
        loss_blocks=2,
        loss_held_out=32,
        loss_evaluations=9,
        distance_seeds=3,
        distance_iterations=180,
        distance_snapshots=3,
        distance_batch_size=32,
        distance_width=8,
        distance_learning_rate=2e-3,
        distance_ema_momentum=0.98,
        distance_n_steps_each=3,
        distance_samples=100,
        flow_seeds=3,
        flow_iterations=600,
        flow_batch_size=64,
        flow_width=64,
        flow_n_hidden=2,
        flow_n_exact=32,
        flow_evaluations=9,
        implicit_seeds=3,
        implicit_iterations=800,
        implicit_warm_up=50,
        implicit_learning_rate=5e-4,
        implicit_score_learning_rate=3e-3,
        implicit_batch_size=64,
        implicit_latent_dim=8,
        implicit_width=64,
        implicit_n_bound=32,
        deep_seeds=3,
        deep_iterations=120,
        gradient_seeds=2,
        gradient_iterations=20,
        gradient_width=32,
        gradient_batch_size=8,
        dkef_seeds=3,
        dkef_max_steps=90,
        dkef_interval=30,
        dkef_inducing=100,
        dkef_batch_size=100,
        dkef_importance=50_000,
        dkef_around=500,
        wine_seeds=2,
        wine_all=False,
        cost_rounds=6,
        cost_mlp_batch_size=64,
        cost_score_width=16,
        cost_score_batch_size=8,
    ),
}
#: What the budgets are, for readers. Only "quick" was measured so far.
_DESCRIPTIONS = {
    "paper": "the source's sizes for DKEF; large networks of our own choice elsewhere, the toy "
    "included; five seeds",
    "hour": "larger networks and more iterations than quick, DKEF cut off at 1,000 steps; how long "
    "it takes was not measured",
    "quick": "minutes on two CPU cores: small networks, few iterations and seeds, DKEF small and "
    "cut off after a few steps; good for comparing methods with one another",
}
BUDGETS = {
    name: Budget(name=name, description=_DESCRIPTIONS[name], settings=effort, datasets=())
    for name, effort in _EFFORTS.items()
}
