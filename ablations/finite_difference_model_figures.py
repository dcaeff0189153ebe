"""Pictures by model: score networks' distance over training, flows' likelihood, decoded samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from ablations.finite_difference_figures import panels_of
from ablations.finite_difference_plan import (
    DISTANCE_OBJECTIVES,
    FLOW_OBJECTIVES,
    IMPLICIT_MODELS,
    IMPLICIT_OBJECTIVES,
)
from ablations.finite_difference_results import TrialResults, mean_and_spread
from ablations.finite_difference_wording import IMAGE_NAMES, OBJECTIVE_NAMES, conditions_of
from ablations.image_grids import Panel, draw_panels, enlargement, tile
from ablations.pictures import INK, Picture, dress_frame, shared_legend
from scorekit.metrics import distance_label

#: Blue for automatic differentiation, orange for its finite differences, as elsewhere.
_STYLES = {
    "mle": ("#1d1d1f", "-"),
    "dsm": ("#12906b", "-"),
    "fd_dsm": ("#12906b", "--"),
    "ssm": ("#23449b", "-"),
    "fd_ssm": ("#e08e0b", "--"),
    "ssm_vr": ("#4ba3d9", "-"),
    "fd_ssm_vr": ("#e08e0b", "--"),
    "curvature": ("#b65f94", "-."),
    "approximate": ("#7d838c", ":"),
}
_AXES = (("seconds", "seconds of training"), ("iteration", "iteration"))
_COLUMNS, _WANTED_PX = 12, 56


def distance_picture(results: TrialResults) -> Picture | None:
    """Fig. A(c): the samples' distance against seconds of training, and against iterations."""
    done = {name: results.done("distance", objective=name) for name in DISTANCE_OBJECTIVES}
    if not any(done.values()):
        return None
    first = next(result for found in done.values() for result in found.values())
    label = distance_label(first["extractor"])
    figure, panels = panels_of(results, 1, 2, (10.0, 4.4))
    for axes, (key, across) in zip(panels, _AXES, strict=True):
        for objective, found in done.items():
            curves = [result["curve"] for result in found.values()]
            _lines(axes, objective, curves, key, "distance")
        dress_frame(axes, across, f"{label} of samples")
    shared_legend(figure, panels)
    return Picture(
        name="distance_over_time",
        title="Samples over training",
        caption=f"The source's Fig. A(c) with our feature space, {label}, and DSM beside it: the "
        "distance of samples at moments of training, against its seconds and its iterations; a "
        "thin line per seed, a thick one through the means. "
        f"{conditions_of(results, ['distance'])}",
        alt="Distance of samples against time for DSM, SSM-VR and FD-SSM-VR",
        figure=figure,
    )


def flow_picture(results: TrialResults) -> Picture | None:
    """The exact likelihood of held-out images over training by each objective."""
    sets = [
        name
        for name in IMAGE_NAMES
        if any(entry.result is not None for entry in results.of("flow", dataset=name))
    ]
    if not sets:
        return None
    figure, panels = panels_of(results, len(sets), 2, (10.0, 1.4 + 3.4 * len(sets)))
    for row, dataset in enumerate(sets):
        for axes, (key, across) in zip(panels[2 * row :], _AXES, strict=False):
            seen: list[float] = []
            begun: list[float] = []
            for objective in FLOW_OBJECTIVES:
                found = results.done("flow", dataset=dataset, objective=objective)
                curves = [result["curve"] for result in found.values()]
                _lines(axes, objective, curves, key, "nll")
                seen += [value for curve in curves for value in curve["nll"]]
                begun += [curve["nll"][0] for curve in curves]
            # What runs away would leave the others no room.
            low, start = min(seen), max(begun)
            top = start + 1.5 * (start - low)
            if low < start and max(seen) > top:
                axes.set_ylim(low - 0.05 * (top - low), top)
            axes.set_title(IMAGE_NAMES[dataset], fontsize=10, color=INK, loc="left")
            dress_frame(axes, across, "NLL of held-out images, nats")
    shared_legend(figure, panels)
    return Picture(
        name="flow_over_time",
        title="Likelihood of NICE over training",
        caption="Exact negative log likelihood of held-out images with noise, against the seconds "
        "of training and against the iterations; a thin line per seed, a thick one through the "
        f"means. What runs away is cut off above. {conditions_of(results, ['flow'])}",
        alt="Likelihood against time for every objective of the flow",
        figure=figure,
    )


def implicit_picture(results: TrialResults) -> Picture | None:
    """Decoded samples of the prior, of each auto-encoder by SSM and by FD-SSM."""
    rows = []
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            done = {
                objective: {
                    entry.seed: entry.directory
                    for entry in results.of(
                        "implicit", dataset=dataset, model=model, objective=objective
                    )
                    if entry.result is not None
                }
                for objective in IMPLICIT_OBJECTIVES
            }
            # The latents are the seed's.
            common = set.intersection(*(set(found) for found in done.values()))
            row = []
            for objective, found in done.items():
                if found:
                    seed = min(common or found)
                    images = np.load(found[seed] / "samples.npy")
                    factor = enlargement(images.shape[-1], _WANTED_PX)
                    heading = f"{model.upper()}, {title}, {OBJECTIVE_NAMES[objective]}"
                    grid = tile(images, _COLUMNS, factor=factor)
                    row.append(Panel(heading=heading, note=f"seed {seed}", image=grid))
            if row:
                rows.append(row)
    if not rows:
        return None
    note = f"budget “{results.plan.budget}”, grid “finite-difference”"
    return Picture(
        name="implicit_samples",
        title="Decoded samples",
        caption="Latents from N(0, I), decoded; the same latents in panels of the same seed. "
        f"{conditions_of(results, ['implicit'])}",
        alt="Grids of decoded digits for VAE and WAE by SSM and FD-SSM",
        figure=draw_panels(rows, note, what="samples"),
    )


def _lines(
    axes: Any, objective: str, curves: list[dict[str, list[float]]], across: str, up: str
) -> None:
    """Draw a thin line per curve and a thick one, with the label, through their means."""
    if not curves:
        return
    colour, style = _STYLES[objective]
    for curve in curves:
        axes.plot(curve[across], curve[up], style, color=colour, linewidth=0.7, alpha=0.45)
    means = [
        [mean_and_spread(values)[0] for values in zip(*(c[key] for c in curves), strict=True)]
        for key in (across, up)
    ]
    label = OBJECTIVE_NAMES[objective]
    axes.plot(*means, style, marker=".", color=colour, linewidth=1.6, label=label)
