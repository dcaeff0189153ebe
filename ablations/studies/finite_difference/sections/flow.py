"""How the flow's likelihood depends on its objective."""

from __future__ import annotations

from ablations.reporting.pictures import INK, Picture, dress_frame, shared_legend
from ablations.reporting.table import Table
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import (
    AXES,
    draw_lines,
    panels_of,
)
from ablations.studies.finite_difference.sections.rows import (
    Pick,
    Records,
    conditions_of,
    over_seeds,
    paired,
    said,
    settings_of,
    skipped_rows,
    table_of,
)
from ablations.studies.finite_difference.sections.wording import (
    IMAGE_NAMES,
    OBJECTIVE_NAMES,
)
from ablations.studies.finite_difference.trials import (
    FLOW_OBJECTIVES,
)


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
            records += paired(
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
        for axes, (key, across) in zip(panels[2 * row :], AXES, strict=False):
            seen: list[float] = []
            begun: list[float] = []
            for objective in FLOW_OBJECTIVES:
                found = results.done("flow", dataset=dataset, objective=objective)
                curves = [result["curve"] for result in found.values()]
                draw_lines(axes, objective, curves, key, "nll")
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


def flow_table(results: TrialResults) -> Table:
    """The exact likelihood of the flow trained by each objective, over the seeds."""
    records = []
    for dataset, title in IMAGE_NAMES.items():
        for objective in FLOW_OBJECTIVES:
            entries = results.of("flow", dataset=dataset, objective=objective)
            if not entries:
                continue
            picks: dict[str, Pick] = {
                "nll": lambda result: result["curve"]["nll"][-1],
                "exact_sm": lambda result: result["exact_sm"],
                "seconds": lambda result: result["seconds"],
                "truncation": lambda result: (result["error"] or {}).get("truncation"),
                "rounding": lambda result: (result["error"] or {}).get("rounding"),
            }
            record = {"group": title, "method": OBJECTIVE_NAMES[objective]}
            records.append(record | over_seeds(entries, picks))
        records += skipped_rows(results, f"flow/{dataset}", title)
    s = settings_of(results, "flow")
    return table_of(
        results,
        "flow",
        "NICE by each objective",
        "Negative log likelihood in nats, exact, and exact score matching of held-out images with "
        f"Gaussian noise σ = {said(s, 'sigma')}, whose density every objective is to learn; mean ± "
        f"sample standard deviation over seeds. NICE of {said(s, 'n_couplings')} couplings × "
        f"{said(s, 'n_hidden')} × {said(s, 'width')}, {said(s, 'iterations')} iterations of "
        f"{said(s, 'batch_size')}, Adam at {said(s, 'learning_rate')} for all (matched; in the "
        f"authors' code the rates differ), ε = {said(s, 'epsilon')}; all from the same weights on "
        "the same batches, noise and directions. Exact score matching on "
        f"{said(s, 'n_exact')} images. Time: of the steps alone. Approximate back-propagation "
        "leaves out what lies off the Hessian's diagonal in every layer: its loss is biased.",
        records,
        {
            "nll": "NLL, nats ↓",
            "exact_sm": "Exact SM ↓",
            "seconds": "Time",
            "truncation": "Truncation",
            "rounding": "Rounding",
        },
    )
