"""Which trials the study consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from ablations.engine.manifest import ManifestFile
from ablations.engine.stages import Stage
from ablations.pipeline.data import DataFacts
from ablations.studies.finite_difference.budgets import Effort

FINITE_DIFFERENCE = "finite-difference"
#: The authors' epsilons on Parkinsons.
DKEF_EPSILONS = (0.1, 0.05, 0.02, 0.01)
#: Over the authors' range for deep energies, [0.01, 1]; gradient errors are shown beyond it too.
DEEP_EPSILONS = (0.01, 0.03, 0.1, 0.3, 1.0)
#: Objectives of the score networks whose samples are measured (Fig. A(c), and the usual one).
DISTANCE_OBJECTIVES = ("dsm", "ssm_vr", "fd_ssm_vr")
#: Objectives of the flow: maximum likelihood, score matching, and its older approximations.
FLOW_OBJECTIVES = (
    *("mle", "dsm", "fd_dsm", "ssm", "ssm_vr", "fd_ssm"),
    *("curvature", "approximate"),
)
IMPLICIT_MODELS, IMPLICIT_OBJECTIVES = ("vae", "wae"), ("ssm", "fd_ssm")
GRADIENT_EPSILONS = (*DEEP_EPSILONS, 3.0)


#: The experiments, of which each grid of the study has one or all.
PARTS = ("toy", "loss", "distance", "flow", "implicit", "epsilon", "cost")
#: The modules of the experiments, called as the kinds of trials are.
_EXPERIMENTS = "ablations.studies.finite_difference.experiments"
#: Kinds of trials whose seconds are compared.
_TIMED = ("loss", "distance", "flow", "implicit", "cost")


@dataclass(frozen=True)
class Trial:
    """A stage with a name; ``settings`` are all that its result depends on, as JSON values.

    ``facts`` are of the images that its score network is trained on, where it has one.
    """

    part: str
    name: str
    kind: str
    settings: dict[str, Any]
    facts: DataFacts | None = field(default=None, compare=False)

    @property
    def timed(self) -> bool:
        """Whether its seconds are compared with those of others."""
        return self.kind in _TIMED

    def to_json(self) -> dict[str, Any]:
        """Return it as a record."""
        record = {key: getattr(self, key) for key in ("part", "name", "kind", "settings")}
        return record if self.facts is None else record | {"facts": dataclasses.asdict(self.facts)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Trial:
        """Return the trial of a record; KeyError or TypeError for another."""
        facts = record.get("facts")
        return cls(
            part=record["part"],
            name=record["name"],
            kind=record["kind"],
            settings=record["settings"],
            facts=None if facts is None else DataFacts(**facts),
        )

    @cached_property
    def stage(self) -> Stage:
        """The stage of the trial."""
        code = tuple(f"{_EXPERIMENTS}.{name}" for name in (self.kind, "learning", "digits"))
        return Stage("trial", {"trial": self.kind, **self.settings}, code=code)


FILE = ManifestFile(
    name="finite-difference.json",
    version=1,
    key="trials",
    to_json=Trial.to_json,
    from_json=Trial.from_json,
    grid=FINITE_DIFFERENCE,
)


def build_trials(
    effort: Effort,
    parts: Sequence[str],
    *,
    seeds: int | None,
    files: dict[str, str],
    images: dict[str, str | None],
    place: dict[str, Any],
    facts: DataFacts | None = None,
) -> list[Trial]:
    """Return the trials of the parts, in order; ``seeds`` in place of every number of seeds.

    ``files`` are the checksums of the UCI tables that are there, ``images`` the fingerprints of the
    sets of images, ``place`` what every trial's settings hold: device and threads, on which times
    depend. ``facts`` are of the digits, on which score networks are trained.
    """
    trials: list[Trial] = []

    def add(part: str, kind: str, name: str, settings: dict[str, Any]) -> None:
        if part in parts:
            of_network = facts if kind == "distance" else None
            trials.append(Trial(part, name, kind, settings | place, of_network))

    def over(count: int) -> range:
        return range(count if seeds is None else seeds)

    for seed in over(effort.toy_seeds):
        add("toy", "toy", f"toy/seed{seed}", _of(effort, "toy") | {"seed": seed})
    network = _of(effort, "loss")
    held_out = network.pop("evaluations")
    for seed in over(effort.loss_seeds):
        for objective in ("dsm", "ssm"):
            settings = network | {"objective": objective, "evaluations": held_out, "seed": seed}
            add("loss", "loss", f"loss/{objective}/seed{seed}", settings)
    for seed in over(effort.distance_seeds):
        for objective in DISTANCE_OBJECTIVES:
            settings = _of(effort, "distance") | {"objective": objective, "seed": seed}
            add("distance", "distance", f"distance/{objective}/seed{seed}", settings)
    for dataset, fingerprint in images.items():
        data = {"dataset": dataset, "data": fingerprint}
        for seed in over(effort.flow_seeds):
            for objective in FLOW_OBJECTIVES:
                settings = _of(effort, "flow") | data | {"objective": objective, "seed": seed}
                add("flow", "flow", f"flow/{dataset}/{objective}/seed{seed}", settings)
        for seed in over(effort.implicit_seeds):
            for model, objective in product(IMPLICIT_MODELS, IMPLICIT_OBJECTIVES):
                settings = _of(effort, "implicit") | data | {"model": model}
                settings |= {"objective": objective, "seed": seed}
                name = f"implicit/{dataset}/{model}/{objective}/seed{seed}"
                add("implicit", "implicit", name, settings)
    for table, checksum in files.items():
        wine = table != "parkinsons"
        epsilons: tuple[float, ...] = DKEF_EPSILONS
        if wine and not effort.wine_all:
            epsilons = (DKEF_EPSILONS[0], DKEF_EPSILONS[-1])
        for seed in over(effort.wine_seeds if wine else effort.dkef_seeds):
            for epsilon in (*epsilons, None):
                name = f"dkef/{table}/{_named(epsilon)}/seed{seed}"
                settings = _dkef(effort) | {"table": table, "data": checksum}
                add("epsilon", "dkef", name, settings | {"epsilon": epsilon, "seed": seed})
    for seed in over(effort.deep_seeds):
        for epsilon in (*DEEP_EPSILONS, None):
            settings = network | {"iterations": effort.deep_iterations}
            name = f"deep/{_named(epsilon)}/seed{seed}"
            add("epsilon", "deep", name, settings | {"epsilon": epsilon, "seed": seed})
    for seed in over(effort.gradient_seeds):
        settings = _of(effort, "gradient") | {
            "n_blocks": 2,
            "learning_rate": 1e-3,
            "sigma": effort.loss_sigma,
            "epsilons": list(GRADIENT_EPSILONS),
        }
        add("epsilon", "gradient", f"gradient/seed{seed}", settings | {"seed": seed})
    for model in ("mlp", "conv", "score", "ncsn"):
        # Steps of the MLP are short, and a short timing needs company.
        rounds = effort.cost_rounds * (5 if model == "mlp" else 1)
        sizes = _of(effort, "cost_score" if model == "ncsn" else f"cost_{model}")
        settings = sizes | {"model": model, "rounds": rounds}
        add("cost", "cost", f"cost/{model}", settings | {"compile": effort.compile})
    return trials


def _of(effort: Effort, prefix: str) -> dict[str, Any]:
    """Return the fields of one part, by their names without it and without the seeds."""
    renamed = {"blocks": "n_blocks", "held_out": "n_held_out"}
    fields = {
        field.name.removeprefix(f"{prefix}_"): getattr(effort, field.name)
        for field in dataclasses.fields(effort)
        if field.name.startswith(f"{prefix}_")
    }
    return {renamed.get(name, name): value for name, value in fields.items() if name != "seeds"}


def _dkef(effort: Effort) -> dict[str, Any]:
    return {
        "n_inducing": effort.dkef_inducing,
        "n_kernels": 3,
        "hidden": 30,
        "batch_size": effort.dkef_batch_size,
        "max_steps": effort.dkef_max_steps,
        "interval": effort.dkef_interval,
        "noise": 0.05,
        "n_importance": effort.dkef_importance,
        "n_around": effort.dkef_around,
    }


def _named(epsilon: float | None) -> str:
    return "ssm" if epsilon is None else f"{epsilon:g}"
