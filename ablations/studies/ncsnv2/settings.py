"""What a user may set: budgets (named profiles) and ``key=value`` overrides, checked by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ablations.engine.settings import Budget, check_names, setting
from scorekit.models.conditioning import CONDITIONINGS
from scorekit.models.score_network import ARCHITECTURES
from scorekit.runtime.compilation import Precision
from scorekit.sampling.registry import SAMPLERS
from scorekit.techniques.ema_profiles import parse_ema
from scorekit.techniques.ladder import STEP_RULES
from scorekit.techniques.noise_levels import NOISE_LEVELS
from scorekit.training.objectives import TRAINING_OBJECTIVES
from scorekit.training.settings import MAX_COUNT

#: What tries out steps of one sampler: such rows have tables of their own.
TRIED_SETTINGS = ("sampling_levels", "n_steps_each", "step_size")
#: The words for rules of epsilon, and what these are called in tables.
STEP_RULE_NAMES = {
    "technique4": "Technique 4",
    "steady_state": "steady state",
    "consistent": "consistent",
    "snr": "snr",
}


def step_rule_name(word: str) -> str:
    """Return what tables call a rule of epsilon; one that a user registered is called so."""
    return STEP_RULE_NAMES.get(word, word)


def step_rules() -> list[str]:
    """Return the words for all rules of epsilon."""
    return [*STEP_RULE_NAMES, *(r for r in STEP_RULES if r not in STEP_RULE_NAMES.values())]


#: What all rows of a data set have together: its images.
SHARED_SETTINGS = ("image_size",)

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
    """What shapes a cell; None means "derived" (from the paper, the data, the variant).

    Noise scales and sampling are those of variants with group (1,2,4): derived by Techniques 1, 2
    and 4, or taken from Table 4 where ``preset`` names one of its datasets; ``coverage`` then
    replaces its ``n_levels``. Without the group they are NCSN's own, and what is set is said to be
    without effect (:mod:`ablations.studies.ncsnv2.without_effect`).
    """

    preset: str | None = setting(
        None, "the row of Table 4 that is taken: cifar10, celeba, church_outdoor, ..."
    )
    sigma_begin: float | None = setting(
        None, "largest noise scale; Technique 1: the largest distance of two training images"
    )
    sigma_end: float | None = setting(None, "smallest noise scale; Sec. 3: 0.01")
    n_levels: int | None = setting(None, "number L of noise scales; Technique 2", "noise scales")
    coverage: float | None = setting(
        None, "probability that neighbouring noise scales share, from which L follows; 0.5"
    )
    n_steps_each: int | None = setting(None, "Langevin steps T at each noise scale", "steps")
    score_evaluations: int | None = setting(
        None, "L times T of a sample, from which T follows; those of Table 4", "evaluations"
    )
    step_size: float | None = setting(None, "ε of the sampler; Technique 4")
    step_size_rule: str | None = setting(
        None, "what ε follows from; the one made for the sampler and T", names=lambda: step_rules()
    )
    sampler: str = setting(
        "annealed", "how samples are drawn; annealed: Langevin dynamics", names=lambda: SAMPLERS
    )
    snr: float | None = setting(
        None, "r of predictor_corrector and of step_size_rule snr; Song et al. 2021: 0.16"
    )
    churn: float = setting(0.0, "noise that heun puts in at each step; Karras et al. 2022")
    schedule: Literal["geometric", "rho"] = setting(
        "geometric", "where the noise scales that samples descend lie; Technique 2: geometric"
    )
    start: Literal["uniform", "gaussian"] = setting(
        "uniform", "where samples start; gaussian: of deviation σ₁ around grey"
    )
    sampling_levels: float | None = setting(
        None, "noise scales that samples descend, below 1 a share of L; needs Technique 3"
    )
    checkpoint: str | None = setting(
        None, "a file whose network is sampled in place of a training: released, or a snapshot"
    )
    architecture: str | None = setting(
        None, "the network, by the sides of images that it is for", names=lambda: ARCHITECTURES
    )
    width: int = setting(128, "filters of the first layer", "channels")
    iterations: int | None = setting(None, "training steps", "steps")
    batch_size: int | None = setting(None, "images of a training step", "images")
    learning_rate: float | None = setting(None, "of Adam; App. B.1: 0.001, 0.0001 with Technique 3")
    adam_eps: float | None = setting(None, "ε of Adam")
    amsgrad: bool = setting(False, "AMSGrad in place of Adam")
    ema_momentum: float = setting(0.999, "momentum of the averaged weights; Technique 5")
    ema: str | None = setting(
        None,
        "another average of the same training that is sampled: a momentum, ramp:0.999, or "
        "power:0.1 by its relative width",
    )
    noise_levels: str = setting(
        "ladder", "noise scales that are trained on", names=lambda: ["ladder", *NOISE_LEVELS]
    )
    loss_weights: str = setting(
        "own", "weights of the loss over noise scales: those of noise_levels, equal or min_snr"
    )
    conditioning: str | None = setting(
        None,
        "how a network knows σ; NCSN: normalisation, Technique 3: inverse_sigma",
        names=lambda: CONDITIONINGS,
    )
    flip: bool | None = setting(None, "random flips of training images, left and right")
    dequantisation: Literal["none", "uniform"] | None = setting(
        None, "noise between the grey levels of training images; none with Technique 3"
    )
    objective: str = setting(
        "dsm", "what training minimises; the paper: dsm", names=lambda: TRAINING_OBJECTIVES
    )
    fd_epsilon: float | None = setting(
        None, "length of a finite difference's displacement; objectives that begin with fd_"
    )
    precision: Precision = setting("fp32", "of the network, in training and sampling")
    snapshot_interval: int = setting(5000, "training steps from snapshot to snapshot", "steps")
    test_interval: int = setting(100, "training steps from test loss to test loss", "steps")
    n_selection: int = setting(
        1000, "samples of every snapshot, by whose distance one is selected", "images"
    )
    n_final: int | None = setting(
        None,
        "samples of the selected snapshot; the authors': 50000, 10000 but for CIFAR-10",
        "images",
    )
    n_loss: int = setting(
        5000, "images of each split, times draws of noise, that its loss is taken of", "images"
    )
    n_dump: int = setting(5000, "samples that are written as pictures", "images")
    reference: Literal["train", "test"] | None = setting(
        None, "the split that samples are compared with; test for CelebA, train for others"
    )
    image_size: int | None = setting(None, "side that images are resized to", "pixels")

    def __post_init__(self) -> None:
        check_names(self)
        if self.ema is not None:
            object.__setattr__(self, "ema", parse_ema(self.ema).name)
        if self.step_size is not None and self.step_size_rule is not None:
            raise ValueError(
                f"step_size_rule = {self.step_size_rule!r} has no effect beside step_size = "
                f"{self.step_size:g}, which it would give; leave one of them out"
            )
        _check_counts(self, n_selection=2, n_final=2, n_loss=2, n_dump=0, score_evaluations=1)
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


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a cell is run, not what it is: speed, memory and rounding. None is of a digest."""

    accumulation: int = setting(1, "parts in which a device takes its share of a batch", "parts")
    compile: bool = setting(True, "torch.compile, where it works")
    sampling_batch: int = setting(256, "samples drawn at once", "images")

    def __post_init__(self) -> None:
        _check_counts(self, accumulation=1, sampling_batch=2)


@dataclass(frozen=True, kw_only=True)
class Profile(Execution, Settings):
    """Both: what a budget sets, and what ``--set`` and a TOML grid's ``[set]`` take, by name."""

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        Execution.__post_init__(self)


def _check_counts(settings: Settings | Execution, **least: int) -> None:
    for name, value in least.items():
        given = getattr(settings, name)
        if given is not None and not value <= given <= MAX_COUNT:
            raise ValueError(f"{name} = {given} must be at least {value} and at most {MAX_COUNT}")


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
            settings=Profile(),
            datasets=("digits",),
        ),
        Budget(
            name="hour",
            description="the paper's networks and noise scales, a twentieth of its iterations and "
            "fewer samples: on images of CIFAR-10's size meant for about an hour of one "
            "data-centre GPU, which is an estimate from FLOPs and not measured yet; can be stopped "
            "and continued every few minutes",
            settings=Profile(
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
            settings=Profile(
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
