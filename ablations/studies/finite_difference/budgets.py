"""What each budget sets for the experiments of the study."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ablations.engine.settings import Budget
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


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a budget sets, part by part; field names are the keys of ``--set``.

    ``dkef_*`` and ``wine_seeds`` are of the part "epsilon", and so are ``deep_*``, whose networks
    and data are those of ``loss_*``, and ``gradient_*``.
    """

    toy_seeds: int = 5
    toy_iterations: int = 3000
    toy_batch_size: int = 128
    toy_width: int = 128
    toy_learning_rate: float = 1e-3
    toy_epsilon: float = 0.1
    toy_grid: int = 64
    loss_seeds: int = 5
    loss_iterations: int = 20_000
    loss_batch_size: int = 64
    loss_width: int = 128
    loss_blocks: int = 8
    loss_learning_rate: float = 1e-3
    loss_epsilon: float = 0.1
    loss_sigma: float = 0.3
    loss_held_out: int = 256
    loss_evaluations: int = 40
    distance_seeds: int = 5
    distance_iterations: int = 200_000
    distance_snapshots: int = 10
    distance_batch_size: int = 128
    distance_width: int = 128
    distance_learning_rate: float = 1e-4
    distance_ema_momentum: float = 0.999
    distance_n_steps_each: int = 5
    distance_samples: int = 1000
    flow_seeds: int = 5
    flow_iterations: int = 20_000
    flow_batch_size: int = 128
    flow_width: int = 1000
    flow_n_hidden: int = 5
    flow_n_couplings: int = 4
    flow_learning_rate: float = 1e-3
    flow_epsilon: float = 0.1
    flow_sigma: float = 0.3
    flow_held_out: int = 10_000
    flow_n_exact: int = 64
    flow_evaluations: int = 20
    implicit_seeds: int = 5
    implicit_iterations: int = 100_000
    implicit_warm_up: int = 100
    implicit_batch_size: int = 128
    implicit_latent_dim: int = 32
    implicit_width: int = 256
    implicit_score_steps: int = 2
    implicit_learning_rate: float = 1e-4
    implicit_score_learning_rate: float = 1e-3
    implicit_epsilon: float = 0.1
    implicit_held_out: int = 10_000
    implicit_n_bound: int = 256
    implicit_samples: int = 1000
    deep_seeds: int = 5
    deep_iterations: int = 10_000
    gradient_seeds: int = 3
    gradient_iterations: int = 200
    gradient_width: int = 64
    gradient_batch_size: int = 16
    dkef_seeds: int = 5
    dkef_max_steps: int = 10_000
    dkef_interval: int = 20
    dkef_inducing: int = 200
    dkef_batch_size: int = 200
    dkef_importance: int = 1_000_000
    dkef_around: int = 1000
    wine_seeds: int = 5
    wine_all: bool = True  # every epsilon; otherwise the largest and the smallest
    cost_rounds: int = 20
    cost_mlp_width: int = 128
    cost_mlp_batch_size: int = 128
    cost_conv_width: int = 64
    cost_conv_batch_size: int = 16
    cost_score_width: int = 128
    cost_score_batch_size: int = 32
    compile: bool = False

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
