"""Paired comparisons by model: score networks' samples, flows, implicit encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ablations.finite_difference_model_tables import IMPLICIT_COLUMNS, distances_at_equal_time
from ablations.finite_difference_plan import IMPLICIT_MODELS
from ablations.finite_difference_results import TrialResults, comparison
from ablations.finite_difference_wording import IMAGE_NAMES, OBJECTIVE_NAMES

Records = list[dict[str, Any]]
_Pick = Callable[[dict[str, Any]], float]


def distance_comparisons(results: TrialResults) -> Records:
    """FD-SSM-VR against SSM-VR, and both against DSM."""
    records: Records = []
    for first, second in (("ssm_vr", "fd_ssm_vr"), ("dsm", "ssm_vr"), ("dsm", "fd_ssm_vr")):
        sides = [results.done("distance", objective=name) for name in (first, second)]
        records += _paired(
            (first, second),
            sides,
            {
                "distance at the last iteration": lambda result: result["curve"]["distance"][-1],
                "seconds of training": lambda result: result["seconds"],
            },
        )
        equal = list(distances_at_equal_time(results, (first, second)).values())
        if equal:
            one, other = (
                (OBJECTIVE_NAMES[name], [found[name] for found in equal])
                for name in (first, second)
            )
            group = f"{other[0]} against {one[0]}"
            records.append(comparison(group, "distance at equal time", "difference", one, other))
    return records


def flow_comparisons(results: TrialResults) -> Records:
    """Finite differences against what they approximate; objectives against one another."""
    records: Records = []
    for dataset, title in IMAGE_NAMES.items():
        for first, second in (
            *(("ssm", "fd_ssm"), ("dsm", "fd_dsm"), ("mle", "ssm"), ("mle", "dsm")),
            *(("mle", "fd_ssm"), ("ssm_vr", "curvature"), ("ssm_vr", "approximate")),
        ):
            sides = [
                results.done("flow", dataset=dataset, objective=name) for name in (first, second)
            ]
            records += _paired(
                (first, second),
                sides,
                {
                    "NLL": lambda result: result["curve"]["nll"][-1],
                    "exact SM": lambda result: result["exact_sm"],
                    "seconds of training": lambda result: result["seconds"],
                },
                where=f", {title}",
            )
    return records


def implicit_comparisons(results: TrialResults) -> Records:
    """FD-SSM against SSM, in every figure of either auto-encoder."""
    records: Records = []
    names = {
        "reconstruction": "reconstruction",
        "bound": "NLL bound",
        "distance": "FD[digits-cnn]",
        "latent_distance": "latents' distance",
        "seconds": "seconds of training",
        "score_seconds": "seconds of the score's training",
    }
    assert names.keys() == IMPLICIT_COLUMNS.keys()
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            sides = [
                results.done("implicit", dataset=dataset, model=model, objective=name)
                for name in ("ssm", "fd_ssm")
            ]
            picks: dict[str, _Pick] = {
                quantity: lambda result, key=key: result[key]  # type: ignore[misc]
                for key, quantity in names.items()
                if all(r[key] is not None for side in sides for r in side.values())
            }
            records += _paired(("ssm", "fd_ssm"), sides, picks, where=f", {model.upper()}, {title}")
    return records


def _paired(
    objectives: tuple[str, str],
    sides: list[dict[int, dict[str, Any]]],
    picks: dict[str, _Pick],
    where: str = "",
) -> Records:
    """Compare what is picked over the seeds that both sides have; times by their ratio."""
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return []
    first, second = (OBJECTIVE_NAMES[name] for name in objectives)
    return [
        comparison(
            f"{second} against {first}{where}",
            quantity,
            "ratio" if quantity.startswith("seconds") else "difference",
            (first, [pick(sides[0][seed]) for seed in seeds]),
            (second, [pick(sides[1][seed]) for seed in seeds]),
        )
        for quantity, pick in picks.items()
    ]
