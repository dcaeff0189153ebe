"""The pictures of the grid ``finite-difference``: the source's Fig. A and what it does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablations.finite_difference_epsilon_tables import SOURCE_NLL
from ablations.finite_difference_plan import DEEP_EPSILONS, DKEF_EPSILONS
from ablations.finite_difference_results import TrialResults, mean_and_spread
from ablations.finite_difference_tables import loss_names
from ablations.finite_difference_wording import (
    MODEL_NAMES,
    OBJECTIVE_NAMES,
    TABLE_NAMES,
    conditions_of,
)
from ablations.pictures import FAINT, INK, Picture, dress_frame, shared_legend
from scorekit.toy_mixture import HALF_WIDTH

EXACT, FINITE, SOURCES = "#23449b", "#e08e0b", "#b65f94"
_TRUNCATION, _ROUNDING = "#12906b", "#c8501e"


def field_picture(results: TrialResults) -> Picture | None:
    """Fig. A(d): the score field of the truth, of SSM and of FD-SSM, and what differs."""
    entry = next((e for e in results.of("toy") if e.result is not None), None)
    if entry is None or entry.result is None:
        return None
    with np.load(entry.directory / "fields.npz") as file:
        arrays = dict(file)
    figure, panels = panels_of(results, 2, 2, (9.0, 8.4))
    side = math.isqrt(len(arrays["points"]))
    longest = float(np.linalg.norm(arrays["truth"], axis=1).max())
    every = max(1, side // 16)
    fields = {
        "truth": arrays["truth"],
        "SSM": arrays["ssm"],
        "FD-SSM": arrays["fd_ssm"],
        "FD-SSM − SSM": arrays["fd_ssm"] - arrays["ssm"],
    }
    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        size = np.linalg.norm(field, axis=1).reshape(side, side)
        last = title == "FD-SSM − SSM"
        # The first axis of the points is x; an image's first axis is y.
        image = axes.imshow(
            size.T,
            origin="lower",
            extent=(-HALF_WIDTH, HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH),
            cmap="Blues",
            vmin=0,
            vmax=None if last else longest,
        )
        thinned = [
            values.reshape(side, side, 2)[every // 2 :: every, every // 2 :: every].reshape(-1, 2)
            for values in (arrays["points"], field)
        ]
        axes.quiver(*thinned[0].T, *thinned[1].T, color=INK, width=0.004, angles="xy")
        note = f"relative difference {entry.result['relative_difference']:.4f}" if last else ""
        divergence = entry.result["fisher_divergence"].get(title)
        if divergence is not None:
            note = f"Fisher divergence {divergence:.4f}"
        axes.set_title(title + (f": {note}" if note else ""), fontsize=10, color=INK, loc="left")
        dress_frame(axes, "", "")
        axes.grid(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=FAINT, labelsize=8, length=0)
    return Picture(
        name="toy_fields",
        title="Score fields of the 2-D toy",
        caption="The source's Fig. A(d) and what it does not show: the score on [−8, 8]² of the "
        "truth, of an MLP energy trained by SSM and of one by FD-SSM, and the difference of the "
        "two. Colour: length; the first three share a scale. Arrows are scaled panel by panel. "
        f"Seed {entry.seed}. {conditions_of(results, ['toy'])}",
        alt="Four fields of arrows; SSM and FD-SSM look the same",
        figure=figure,
    )


def loss_picture(results: TrialResults) -> Picture | None:
    """Fig. A(a) and (b): exact score matching against seconds, and against iterations."""
    if not any(entry.result is not None for entry in results.of("loss")):
        return None
    figure, panels = panels_of(results, 2, 2, (10.0, 7.4))
    for row, objective in enumerate(("dsm", "ssm")):
        names = loss_names(objective)
        done = results.done("loss", objective=objective)
        for column, (key, label) in enumerate(
            (("seconds", "seconds of training"), ("iteration", "iteration"))
        ):
            axes = panels[2 * row + column]
            for result in done.values():
                for name, colour, style in zip(names, (EXACT, FINITE), ("-", "--"), strict=True):
                    curve = result["curves"][name]
                    axes.plot(
                        curve[key],
                        curve["exact_sm"],
                        style,
                        marker=".",
                        color=colour,
                        linewidth=1.4,
                        label="finite differences"
                        if style == "--"
                        else "automatic differentiation",
                    )
            axes.set_title(" and ".join(names), fontsize=10, color=INK, loc="left")
            dress_frame(axes, label, "exact SM on held-out images")
    shared_legend(figure, panels)
    return Picture(
        name="loss_over_time",
        title="Loss over time",
        caption="The source's Fig. A(a) (above) and A(b) (below): exact score matching on held-out "
        "digits with fixed noise, the same judge for all four objectives, "
        "against the seconds of training and against the iterations; a line per seed. "
        f"{conditions_of(results, ['loss'])}",
        alt="Curves of the loss for DSM, FD-DSM, SSM and FD-SSM",
        figure=figure,
    )


def dkef_picture(results: TrialResults) -> Picture | None:
    """Test likelihoods of DKEF by epsilon, ours by seed and the source's on Parkinsons."""
    tables = [
        name
        for name in TABLE_NAMES
        if any(entry.result is not None for entry in results.of("dkef", table=name))
    ]
    if not tables:
        return None
    figure, panels = panels_of(results, 1, len(tables), (3.8 * len(tables) + 1.2, 4.2))
    for axes, table in zip(panels, tables, strict=True):
        for name, colour, label in (
            ("broad", EXACT, "normaliser from N(0, 4 I)"),
            ("around", FINITE, "normaliser from around the data"),
        ):
            seeds: dict[int, list[tuple[float, float]]] = {}
            exact: list[float] = []
            for entry in results.of("dkef", table=table):
                if entry.result is not None:
                    nll = entry.result["likelihoods"][name]["nll"]
                    epsilon = entry.trial.settings["epsilon"]
                    if epsilon is None:
                        exact.append(nll)
                    else:
                        seeds.setdefault(entry.seed, []).append((epsilon, nll))
            for points in seeds.values():
                axes.plot(*zip(*points, strict=True), ".-", color=colour, alpha=0.45, linewidth=0.8)
            means: dict[float, list[float]] = {}
            for epsilon, nll in (point for points in seeds.values() for point in points):
                means.setdefault(epsilon, []).append(nll)
            at = sorted(means)
            line = [mean_and_spread(means[epsilon])[0] for epsilon in at]
            axes.plot(at, line, "o-", color=colour, linewidth=1.6, label=label)
            if exact:
                mean = mean_and_spread(exact)[0]
                axes.axhline(mean, color=colour, linestyle=":", linewidth=1.2, label="SSM (ε → 0)")
        if table == "parkinsons":
            pairs = list(SOURCE_NLL.items())
            axes.plot(*zip(*pairs, strict=True), "x", color=SOURCES, label="the source's")
        axes.set_xscale("log")
        axes.set_xticks(DKEF_EPSILONS, [f"{epsilon:g}" for epsilon in DKEF_EPSILONS])
        axes.minorticks_off()
        axes.set_title(TABLE_NAMES[table], fontsize=10, color=INK, loc="left")
        dress_frame(axes, "ε, log scale", "test NLL, nats")
    shared_legend(figure, panels)
    return Picture(
        name="dkef_epsilon",
        title="DKEF by ε",
        caption="Test negative log likelihood against ε; a thin line per seed, a thick one "
        "through the means, dotted lines SSM on the same batches and directions. Crosses: the "
        "source's four numbers. How far each can be trusted, the "
        f"effective sample size says, in the table. {conditions_of(results, ['dkef'])}",
        alt="Test likelihood against epsilon for each data set",
        figure=figure,
    )


def epsilon_picture(results: TrialResults) -> Picture | None:
    """Deep energies by epsilon: the trained loss, and the gradient's error taken apart."""
    gradients = [e.result for e in results.of("gradient") if e.result is not None]
    deep = [entry for entry in results.of("deep") if entry.result is not None]
    if not gradients and not deep:
        return None
    figure, (left, right) = panels_of(results, 1, 2, (10.0, 4.4))
    for entry in deep:
        assert entry.result is not None
        epsilon, loss = entry.trial.settings["epsilon"], entry.result["exact_sm"]
        if epsilon is None:
            left.axhline(loss, color=EXACT, linewidth=1.2, label="SSM")
        else:
            left.plot(epsilon, loss, "o", color=FINITE, label="FD-SSM", markersize=5)
    left.set_xscale("log")
    left.set_xlim(DEEP_EPSILONS[0] / 1.5, DEEP_EPSILONS[-1] * 1.5)
    left.set_title("Trained at ε, digits, d = 64", fontsize=10, color=INK, loc="left")
    dress_frame(left, "ε, log scale", "exact SM on held-out images")
    for name, colour, style in (
        ("truncation", _TRUNCATION, "--"),
        ("rounding", _ROUNDING, "--"),
        ("error", INK, "-"),
    ):
        label = {"error": "all of it, float32", "rounding": "rounding"}.get(name, name)
        for result in gradients:
            rows = result["rows"]
            values = [math.nan if row[name] is None else row[name] for row in rows]
            at = [row["epsilon"] for row in rows]
            right.plot(at, values, style, marker=".", color=colour, linewidth=1.4, label=label)
    right.set(xscale="log", yscale="log")
    right.set_title("Error of the gradient, d = 3072", fontsize=10, color=INK, loc="left")
    dress_frame(right, "ε, log scale", "relative to its norm, log scale")
    shared_legend(figure, [left, right])
    return Picture(
        name="deep_epsilon",
        title="Deep energies by ε",
        caption="Left: exact score matching of convolutional energies trained at each ε from the "
        "same weights, on the same batches and directions; a point or a line per seed. Right: the "
        "error of FD-SSM's float32 gradient at d = 3072 against float64 automatic differentiation "
        "on the same directions, and what of it is truncation and rounding; a line per seed. "
        f"{conditions_of(results, ['deep', 'gradient'])}",
        alt="Trained loss against epsilon, and the gradient's error against epsilon",
        figure=figure,
    )


def cost_picture(results: TrialResults) -> Picture | None:
    """Bars of time and memory in units of one forward and backward pass, for each model."""
    entries = [entry for entry in results.of("cost") if entry.result is not None]
    if not entries:
        return None
    shown: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = []
    for entry in entries:
        assert entry.result is not None
        reference, *rows = entry.result["rows"]
        # Exact SM is d times dearer, and would leave the others no room.
        rows = [row for row in rows if row["objective"] != "exact_sm"]
        shown.append((MODEL_NAMES[entry.trial.settings["model"]], rows, reference))
    heights = [len(rows) for _, rows, _ in shown]
    size = 10.0, 0.27 * sum(heights) + 2.2
    figure, panels = panels_of(results, len(shown), 2, size, height_ratios=heights)
    for i, (title, rows, reference) in enumerate(shown):
        left, right = panels[2 * i : 2 * i + 2]
        places = range(len(rows))
        colours = [FINITE if row["objective"].startswith("fd_") else EXACT for row in rows]
        left.barh(places, [row["ratio"] for row in rows], color=colours, height=0.7)
        for place, row in zip(places, rows, strict=True):
            interval = (row["ratio_low"], row["ratio_high"])
            left.plot(interval, (place, place), color=INK, linewidth=1.2)
        before = reference["peak_bytes"]
        memories = [math.nan if r["peak_bytes"] is None else r["peak_bytes"] / before for r in rows]
        right.barh(places, memories, color=colours, height=0.7)
        labels = [_row_name(row) for row in rows]
        left.set_yticks(places, labels)
        right.set_yticks(places, [""] * len(rows))
        for axes, what in ((left, "time"), (right, "peak memory")):
            axes.invert_yaxis()
            axes.set_title(f"{title}: {what}", fontsize=10, color=INK, loc="left")
            dress_frame(axes, "", "")
            axes.grid(axis="y", visible=False)
    for axes in panels[-2:]:
        axes.set_xlabel("× one forward and backward pass", color=FAINT, fontsize=9.5)
    return Picture(
        name="cost",
        title="Time and memory of a step",
        caption="In units of one forward and backward pass of the model itself; blue by automatic "
        "differentiation, orange by finite differences; black lines are 95 % intervals of the "
        f"median. Exact SM is in the table only. {conditions_of(results, ['cost'])}",
        alt="Bars of time and memory for every objective and way of differentiating",
        figure=figure,
    )


def _row_name(row: dict[str, Any]) -> str:
    way = row["way"].replace("finite_difference_sequential", "one by one")
    way = way.replace("finite_difference", "batched").replace("_", " ")
    mode = ", compiled" if row["mode"] == "compiled" else ""
    return f"{OBJECTIVE_NAMES[row['objective']]}, {way}{mode}"


def panels_of(
    results: TrialResults, n_rows: int, n_columns: int, size: tuple[float, float], **layout: Any
) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with rows of panels, row after row, and the note that names the budget."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False, **layout).flat)
    # The note travels with the picture when it is cut out of the report.
    note = f"budget “{results.plan.budget}”, grid “finite-difference”"
    figure.suptitle(note, x=0.995, ha="right", fontsize=8, color=FAINT)
    return figure, panels
