"""What a user may set: budgets (named profiles) and ``key=value`` overrides, checked by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ablations.engine.settings import Budget
from scorekit.objectives.score_matching import Objective
from scorekit.runtime.compilation import Precision
from scorekit.training.settings import MAX_COUNT

_S = TypeVar("_S")

#: How, not what: these change speed, memory and rounding, and belong to no digest.
EXECUTION_SETTINGS = ("accumulation", "compile", "sampling_batch")

#: What one row of a grid may set apart from others: how samples are drawn, and the objective.
ROW_SETTINGS = ("sampler", "sampling_levels", "n_steps_each", "step_size", "objective")

#: What the ladder of a row with group (1,2,4) is derived from, or given by.
LADDER_SETTINGS = (
    "sigma_begin",
    "sigma_end",
    "n_levels",
    "coverage",
    "n_steps_each",
    "step_size",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that shapes a cell; None means "derived" (from the paper, the data, the variant).

    Field names are the keys of ``--set`` and of a TOML grid's ``[set]`` table.
    """

    # Noise scales and sampling, for variants with group (1,2,4): derived by Techniques 1, 2 and 4,
    # or taken from Table 4 where ``preset`` names one of its datasets; ``coverage`` then replaces
    # its ``n_levels``. Without the group they are NCSN's own, and what is set is said to be without
    # effect (:mod:`ablations.studies.ncsnv2.without_effect`).
    preset: str | None = None
    sigma_begin: float | None = None
    sigma_end: float | None = None  # Sec. 3: 0.01
    n_levels: int | None = None
    coverage: float | None = None  # Technique 2: 0.5
    n_steps_each: int | None = None
    score_evaluations: int | None = None  # per sample, from which T follows; None: as in Table 4
    step_size: float | None = None
    # How the trained network is sampled. ``sampling_levels`` is the number of noise scales, or
    # below 1 a share of those trained with; it needs Technique 3.
    sampler: Literal["annealed", "consistent"] = "annealed"
    sampling_levels: float | None = None
    # Network.
    architecture: str | None = None
    width: int = 128
    # Training.
    iterations: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    adam_eps: float | None = None
    amsgrad: bool = False
    ema_momentum: float = 0.999
    flip: bool | None = None
    dequantisation: Literal["none", "uniform"] | None = None
    objective: Objective = "dsm"
    fd_epsilon: float | None = None
    precision: Precision = "fp32"
    snapshot_interval: int = 5000
    test_interval: int = 100
    # Evaluation.
    n_selection: int = 1000
    n_final: int | None = None  # the authors': 50,000 for CIFAR-10, 10,000 for others
    n_loss: int = 5000  # images of each split times draws of noise that its loss is taken of
    n_dump: int = 5000
    reference: Literal["train", "test"] | None = None  # the paper's: CelebA test, others train
    # Data.
    image_size: int | None = None
    # EXECUTION_SETTINGS.
    accumulation: int = 1  # micro-batches that a device takes its share of a batch in
    compile: bool = True
    sampling_batch: int = 256

    def __post_init__(self) -> None:
        least = {"n_selection": 2, "n_final": 2, "n_loss": 2, "n_dump": 0, "sampling_batch": 2}
        for name, value in (least | {"accumulation": 1, "score_evaluations": 1}).items():
            given = getattr(self, name)
            if given is not None and not value <= given <= MAX_COUNT:
                raise ValueError(
                    f"{name} = {given} must be at least {value} and at most {MAX_COUNT}"
                )
        if self.n_final is not None and self.n_final < self.n_selection:
            raise ValueError(
                f"n_final = {self.n_final} must be at least n_selection = {self.n_selection}"
            )
        if self.sampling_levels is not None and not (
            0 < self.sampling_levels < 1
            or (self.sampling_levels >= 2 and self.sampling_levels % 1 == 0)
        ):
            raise ValueError(
                f"sampling_levels = {self.sampling_levels} must be a whole number from 2, or a "
                "share between 0 and 1"
            )


def _quick_for(*, iterations: int, samples: int) -> dict[str, Any]:
    return {
        **{"width": 8, "iterations": iterations, "snapshot_interval": iterations // 3},
        **{"test_interval": iterations // 6, "n_selection": samples, "n_final": 2 * samples},
        **{"n_loss": 8 * samples, "n_dump": 2 * samples},
    }


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            name="paper",
            description="widths, iterations and sample counts of the paper",
            settings=Settings(),
            datasets=("digits",),
        ),
        Budget(
            name="hour",
            description="the paper's networks and noise scales, a twentieth of its iterations and "
            "fewer samples: on images of CIFAR-10's size meant for about an hour of one "
            "data-centre GPU, which is an estimate from FLOPs and not measured yet; can be stopped "
            "and continued every few minutes",
            settings=Settings(
                iterations=15_000,
                precision="bf16",
                snapshot_interval=2500,
                n_selection=250,
                n_final=1000,
                n_loss=2000,
                n_dump=1000,
                sampling_batch=250,
            ),
            datasets=("cifar10-jpeg",),
        ),
        Budget(
            name="quick",
            description="minutes on two CPU cores: small networks, few samples, few iterations, "
            "and a learning rate and EMA momentum that suit so few; good for a first look and for "
            "comparing variants with one another, not with the paper's numbers",
            settings=Settings(
                # Over so few iterations the paper's momentum would keep a tenth of the initial
                # weights, and its learning rate for Technique 3 would learn little.
                width=16,
                iterations=1800,
                batch_size=32,
                learning_rate=1e-3,
                ema_momentum=0.997,
                # T = 10 on the digits, whose ladder has 21 noise scales; fewer on larger images.
                score_evaluations=215,
                snapshot_interval=600,
                test_interval=50,
                n_selection=72,
                n_final=144,
                n_loss=2000,
                n_dump=100,
                sampling_batch=72,
                # Compiling networks this small takes longer than it saves in so short a run.
                compile=False,
            ),
            datasets=("digits",),
            # A step of 32 x 32 images costs 16 times one of the digits' 8 x 8, and so on.
            larger={
                24: _quick_for(iterations=1200, samples=48),
                48: _quick_for(iterations=300, samples=16),
                96: _quick_for(iterations=150, samples=8),
                192: _quick_for(iterations=60, samples=4),
            },
        ),
    )
}


def budget_label(name: str, overrides: Mapping[str, Any], image_sizes: Iterable[int] = ()) -> str:
    """Return a budget as reports name it: "quick", or "quick, changed: iterations=100, width=8".

    What it sets otherwise for images of some side stands before: "quick, at 32×32: width=8".
    """
    budget = BUDGETS.get(name)
    if budget is not None:
        for side in sorted(set(image_sizes)):
            own = {k: v for k, v in budget.at(side).items() if k not in overrides}
            if own:
                name += f", at {side}×{side}: {_listed(own)}"
    return f"{name}{_changes(budget, overrides)}"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(settings.items()))


def _changes(budget: Budget | None, overrides: Mapping[str, Any]) -> str:
    own = None if budget is None else budget.settings
    changed = {k: v for k, v in overrides.items() if own is None or getattr(own, k) != v}
    return f", changed: {_listed(changed)}" if changed else ""
