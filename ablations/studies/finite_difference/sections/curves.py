"""Curves of pairs of objectives: their styles, panels and equal times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablations.reporting.paired import mean_and_spread
from ablations.reporting.pictures import FAINT
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.wording import (
    OBJECTIVE_NAMES,
)


def at_equal_time(
    curves: dict[str, dict[str, list[float]]], quantity: str = "exact_sm"
) -> dict[str, float]:
    """Return each curve's quantity when the fastest was at its end.

    NaN for a curve that begins later.
    """
    end = min(curve["seconds"][-1] for curve in curves.values())
    return {
        name: float(np.interp(end, curve["seconds"], curve[quantity], left=np.nan))
        for name, curve in curves.items()
    }


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
AXES = (("seconds", "seconds of training"), ("iteration", "iteration"))


def draw_lines(
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


EXACT, FINITE, SOURCES = "#23449b", "#e08e0b", "#b65f94"


def panels_of(
    results: TrialResults, n_rows: int, n_columns: int, size: tuple[float, float], **layout: Any
) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with rows of panels, row after row, and the note that names the budget."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False, **layout).flat)
    # The note travels with the picture when it is cut out of the report.
    note = f"budget “{results.plan.budget}”, grid “{results.plan.grid}”"
    figure.suptitle(note, x=0.995, ha="right", fontsize=8, color=FAINT)
    return figure, panels
