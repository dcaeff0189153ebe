"""How losses fall over wall time."""

from __future__ import annotations

from typing import Any

from ablations.reporting.paired import comparison
from ablations.reporting.pictures import INK, Picture, dress_frame, shared_legend
from ablations.reporting.table import Table
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import (
    EXACT,
    FINITE,
    at_equal_time,
    panels_of,
)
from ablations.studies.finite_difference.sections.rows import (
    conditions_of,
    plain_table,
    row_kind,
    said,
    settings_of,
    status_of,
)
from ablations.studies.finite_difference.sections.wording import (
    OBJECTIVE_NAMES,
)


def loss_table(results: TrialResults) -> Table:
    """Every seed of each objective with its finite differences: the judged losses and the times."""
    records = []
    for objective in ("dsm", "ssm"):
        names = loss_names(objective)
        pair = " and ".join(names)
        for entry in results.of("loss", objective=objective):
            base = row_kind(entry) | {"group": pair, "seed": entry.seed, "status": status_of(entry)}
            if entry.result is None:
                records.append(base)
                continue
            same_time = at_equal_time(entry.result["curves"])
            for name in names:
                curve = entry.result["curves"][name]
                record = base | {
                    "method": name,
                    "exact_sm": curve["exact_sm"][-1],
                    "exact_sm_equal_time": same_time[name],
                    "seconds": curve["seconds"][-1],
                }
                if name.startswith("FD-"):
                    record |= {
                        "truncation": entry.result["error"]["truncation"],
                        "rounding": entry.result["error"]["rounding"],
                    }
                else:
                    record["status"] = "done"
                records.append(record)
    columns = {
        "method": "Objective",
        "seed": "Seed",
        "exact_sm": "Exact SM, last iteration ↓",
        "exact_sm_equal_time": "Exact SM at equal time ↓",
        "seconds": "Time",
        "truncation": "Truncation",
        "rounding": "Rounding",
        "status": "Status",
    }
    s = settings_of(results, "loss")
    return plain_table(
        "loss",
        "Loss by exact score matching",
        f"A convolutional energy ({said(s, 'width')} channels, {said(s, 'n_blocks')} residual "
        f"blocks) on 8×8 digits with noise σ = {said(s, 'sigma')}, {said(s, 'iterations')} "
        f"iterations of {said(s, 'batch_size')}, Adam at {said(s, 'learning_rate')} for all "
        f"(matched), ε = {said(s, 'epsilon')}. All are judged by exact score matching on the same "
        f"{said(s, 'n_held_out')} held-out images with the same noise; judging is in no time. At "
        "equal time: at the end of the faster of the two, between judgements by linear "
        f"interpolation. {conditions_of(results, ['loss'])}",
        "",
        records,
        columns,
        times=("seconds",),
    )


def loss_names(objective: str) -> tuple[str, str]:
    """Return the names of the two curves of a pair: the objective's and its finite difference's."""
    return OBJECTIVE_NAMES[objective], f"FD-{OBJECTIVE_NAMES[objective]}"


def loss_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    records = []
    for objective in ("dsm", "ssm"):
        done = [result["curves"] for result in results.done("loss", objective=objective).values()]
        if not done:
            continue
        names = loss_names(objective)
        group = f"{names[1]} against {names[0]}"
        equal = [at_equal_time(curves) for curves in done]
        for quantity, sort, values in (
            (
                "exact SM at the last iteration",
                "difference",
                [[curves[name]["exact_sm"][-1] for curves in done] for name in names],
            ),
            (
                "exact SM at equal time",
                "difference",
                [[found[name] for found in equal] for name in names],
            ),
            (
                "seconds of training",
                "ratio",
                [[curves[name]["seconds"][-1] for curves in done] for name in names],
            ),
        ):
            sides = zip(names, values, strict=True)
            records.append(comparison(group, quantity, sort, *sides))
    return records


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
