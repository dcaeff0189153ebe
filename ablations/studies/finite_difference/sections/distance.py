"""How the score networks' samples near the data over training."""

from __future__ import annotations

from collections.abc import Sequence

from ablations.reporting.paired import comparison, mean_and_spread
from ablations.reporting.pictures import Picture, dress_frame, shared_legend
from ablations.reporting.table import Table
from ablations.reporting.wording import number
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import (
    AXES,
    at_equal_time,
    draw_lines,
    panels_of,
)
from ablations.studies.finite_difference.sections.rows import (
    Pick,
    Records,
    conditions_of,
    found_of,
    over_seeds,
    paired,
    said,
    settings_of,
    table_of,
)
from ablations.studies.finite_difference.sections.wording import (
    OBJECTIVE_NAMES,
)
from ablations.studies.finite_difference.trials import (
    DISTANCE_OBJECTIVES,
)
from scorekit.metrics.spaces import distance_label


def distance_comparisons(results: TrialResults) -> Records:
    """FD-SSM-VR against SSM-VR, and both against DSM."""
    records: Records = []
    for first, second in (("ssm_vr", "fd_ssm_vr"), ("dsm", "ssm_vr"), ("dsm", "fd_ssm_vr")):
        sides = [results.done("distance", objective=name) for name in (first, second)]
        records += paired(
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


def distance_picture(results: TrialResults) -> Picture | None:
    """Fig. A(c): the samples' distance against seconds of training, and against iterations."""
    done = {name: results.done("distance", objective=name) for name in DISTANCE_OBJECTIVES}
    if not any(done.values()):
        return None
    first = next(result for found in done.values() for result in found.values())
    label = distance_label(first["extractor"])
    figure, panels = panels_of(results, 1, 2, (10.0, 4.4))
    for axes, (key, across) in zip(panels, AXES, strict=True):
        for objective, found in done.items():
            curves = [result["curve"] for result in found.values()]
            draw_lines(axes, objective, curves, key, "distance")
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


def distance_table(results: TrialResults) -> Table:
    """The samples' distance at the end of training and at equal time, over the seeds."""
    equal = distances_at_equal_time(results, DISTANCE_OBJECTIVES)
    records = []
    for objective in DISTANCE_OBJECTIVES:
        entries = results.of("distance", objective=objective)
        picks: dict[str, Pick] = {
            "distance": lambda result: result["curve"]["distance"][-1],
            "seconds": lambda result: result["seconds"],
        }
        record = over_seeds(entries, picks)
        together = [found[objective] for found in equal.values()]
        mean, spread = mean_and_spread(together)
        record |= {"equal_time": mean, "equal_time_std": spread}
        records.append({"group": "digits", "method": OBJECTIVE_NAMES[objective]} | record)
    s = settings_of(results, "distance")
    label = distance_label(found_of(results, "distance", "extractor", "digits-cnn"))
    return table_of(
        results,
        "distance",
        "Samples of score networks by objective",
        f"Fréchet distance in the feature space {label} of {said(s, 'samples')} samples from the "
        "training images, with the denoising step, mean ± sample standard deviation over seeds. "
        f"NCSNv2 ({said(s, 'width')} channels, averaged weights, "
        f"{number(found_of(results, 'distance', 'n_levels', None))} noise scales × "
        f"{said(s, 'n_steps_each')} steps) after {said(s, 'iterations')} iterations of "
        f"{said(s, 'batch_size')}, Adam at {said(s, 'learning_rate')} for all; the same weights at "
        "first, batches and noise; ε by the default rule. Eager for all. At equal time: when the "
        "fastest of all was at its end, between snapshots by linear interpolation, over the seeds "
        "that all have finished; a dash where one had no snapshot by then. Distances of so few "
        "samples are higher than those of more.",
        records,
        {
            "distance": f"{label}, last iteration ↓",
            "equal_time": f"{label} at equal time ↓",
            "seconds": "Time",
        },
    )


def distances_at_equal_time(
    results: TrialResults, objectives: Sequence[str]
) -> dict[int, dict[str, float]]:
    """Return by seed each objective's distance when the fastest of these was at its end.

    Of the seeds that all of these have finished; NaN where one had no snapshot by then.
    """
    done = {name: results.done("distance", objective=name) for name in objectives}
    seeds = sorted(set.intersection(*(set(found) for found in done.values())))
    return {
        seed: at_equal_time(
            {name: found[seed]["curve"] for name, found in done.items()}, "distance"
        )
        for seed in seeds
    }
