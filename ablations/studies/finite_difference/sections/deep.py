"""What epsilon does to a deep energy and to gradients."""

from __future__ import annotations

import math
from typing import Any

from ablations.reporting.paired import mean_and_spread
from ablations.reporting.pictures import INK, Picture, dress_frame, shared_legend
from ablations.reporting.table import Table
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import EXACT, FINITE, panels_of
from ablations.studies.finite_difference.sections.rows import (
    Pick,
    conditions_of,
    over_seeds,
    plain_table,
    row_kind,
    said,
    settings_of,
    status_of,
    table_of,
)
from ablations.studies.finite_difference.sections.wording import (
    method_name,
)
from ablations.studies.finite_difference.trials import DEEP_EPSILONS


def deep_table(results: TrialResults) -> Table:
    """The convolutional energy of digits trained at each epsilon, and its gradient's errors."""
    picks: dict[str, Pick] = {
        "exact_sm": lambda r: r["exact_sm"],
        "truncation": lambda r: r["error"] and r["error"]["truncation"],
        "rounding": lambda r: r["error"] and r["error"]["rounding"],
    }
    records = [
        {"group": "digits, d = 64", "method": method_name(epsilon)} | over_seeds(entries, picks)
        for epsilon in (*DEEP_EPSILONS, None)
        if (entries := results.of("deep", epsilon=epsilon))
    ]
    s = settings_of(results, "deep")
    return table_of(
        results,
        "deep",
        "A deep energy trained at each ε",
        "Exact score matching on held-out digits, mean ± sample standard deviation over "
        f"seeds, after {said(s, 'iterations')} iterations of FD-SSM at ε, otherwise as for the "
        "losses over time; every ε from the same weights on the same batches and directions. "
        "Truncation and rounding (float32): relative errors of the gradient after training. The "
        "source reports comparable performance for ε in [0.01, 1], without numbers.",
        records,
        {"exact_sm": "Exact SM ↓", "truncation": "Truncation", "rounding": "Rounding"},
    )


def gradient_table(results: TrialResults) -> Table:
    """The error of FD-SSM's float32 gradient at d = 3072 by epsilon, taken apart in two."""
    entries = results.of("gradient")
    done = [entry.result for entry in entries if entry.result is not None]
    records: list[dict[str, Any]] = []
    group = {"group": "3×32×32, d = 3072"}
    for rows in zip(*(r["rows"] for r in done), strict=True):
        names = ("error", "truncation", "rounding")
        means = {name: mean_and_spread(row[name] for row in rows)[0] for name in names}
        dominates = "truncation" if means["rounding"] <= means["truncation"] else "rounding"
        record = {"method": method_name(rows[0]["epsilon"]), "n_seeds": len(rows)}
        records.append(group | record | means | {"status": f"{dominates} dominates"})
    if done:
        error = mean_and_spread(r["float32_ad_error"] for r in done)[0]
        exact = {"method": "SSM by automatic differentiation", "n_seeds": len(done)}
        records.append(group | exact | {"error": error, "rounding": error, "status": "float32"})
    records += [
        group | row_kind(entry) | {"method": f"seed {entry.seed}", "status": status_of(entry)}
        for entry in entries
        if entry.result is None
    ]
    columns = {
        "method": "Objective",
        "n_seeds": "Seeds",
        "error": "Relative error",
        "truncation": "Truncation",
        "rounding": "Rounding",
        "status": "What dominates",
    }
    s = settings_of(results, "gradient")
    return plain_table(
        "gradient",
        "Rounding against truncation",
        "Relative error of FD-SSM's parameter gradient in float32 against automatic "
        "differentiation of SSM in float64 on the same images and directions, mean over seeds. "
        "Truncation is the error of float64 finite differences, rounding what float32 adds. A "
        f"convolutional energy of 3×32×32 images ({said(s, 'width')} channels), trained for "
        f"{said(s, 'iterations')} iterations of DSM at σ = {said(s, 'sigma')} on photographs; "
        f"{said(s, 'batch_size')} images. {conditions_of(results, ['gradient'])}",
        "3×32×32, d = 3072",
        [{"kind": "ours"} | record for record in records],
        columns,
    )


_TRUNCATION, _ROUNDING = "#12906b", "#c8501e"


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
