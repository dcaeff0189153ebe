"""Tables of the grid ``finite-difference`` by model: score networks' samples, flows, encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.finite_difference_plan import (
    DISTANCE_OBJECTIVES,
    FLOW_OBJECTIVES,
    IMPLICIT_MODELS,
    IMPLICIT_OBJECTIVES,
)
from ablations.finite_difference_results import TrialResult, TrialResults, mean_and_spread
from ablations.finite_difference_tables import at_equal_time
from ablations.finite_difference_wording import (
    IMAGE_NAMES,
    OBJECTIVE_NAMES,
    conditions_of,
    frame,
    row_kind,
    said,
    settings_of,
    statuses_of,
    with_spread,
)
from ablations.presentation import duration, joined, number
from ablations.tables import Table
from scorekit.metrics import distance_label

_Pick = Callable[[dict[str, Any]], float | None]


def distance_table(results: TrialResults) -> Table:
    """The samples' distance at the end of training and at equal time, over the seeds."""
    equal = distances_at_equal_time(results, DISTANCE_OBJECTIVES)
    records = []
    for objective in DISTANCE_OBJECTIVES:
        entries = results.of("distance", objective=objective)
        picks: dict[str, _Pick] = {
            "distance": lambda result: result["curve"]["distance"][-1],
            "seconds": lambda result: result["seconds"],
        }
        record = _over_seeds(entries, picks)
        together = [found[objective] for found in equal.values()]
        mean, spread = mean_and_spread(together)
        record |= {"equal_time": mean, "equal_time_std": spread}
        records.append({"group": "digits", "method": OBJECTIVE_NAMES[objective]} | record)
    s = settings_of(results, "distance")
    label = distance_label(_found(results, "distance", "extractor", "digits-cnn"))
    return _table(
        results,
        "distance",
        "Samples of score networks by objective",
        f"Fréchet distance in the feature space {label} of {said(s, 'samples')} samples from the "
        "training images, with the denoising step, mean ± sample standard deviation over seeds. "
        f"NCSNv2 ({said(s, 'width')} channels, averaged weights, "
        f"{number(_found(results, 'distance', 'n_levels', None))} noise scales × "
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


def flow_table(results: TrialResults) -> Table:
    """The exact likelihood of the flow trained by each objective, over the seeds."""
    records = []
    for dataset, title in IMAGE_NAMES.items():
        for objective in FLOW_OBJECTIVES:
            entries = results.of("flow", dataset=dataset, objective=objective)
            if not entries:
                continue
            picks: dict[str, _Pick] = {
                "nll": lambda result: result["curve"]["nll"][-1],
                "exact_sm": lambda result: result["exact_sm"],
                "seconds": lambda result: result["seconds"],
                "truncation": lambda result: (result["error"] or {}).get("truncation"),
                "rounding": lambda result: (result["error"] or {}).get("rounding"),
            }
            record = {"group": title, "method": OBJECTIVE_NAMES[objective]}
            records.append(record | _over_seeds(entries, picks))
        records += _skipped(results, f"flow/{dataset}", title)
    s = settings_of(results, "flow")
    return _table(
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


def implicit_table(results: TrialResults) -> Table:
    """VAE and WAE with implicit encoders by the objective of their latents' score."""
    records = []
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            for objective in IMPLICIT_OBJECTIVES:
                entries = results.of("implicit", dataset=dataset, model=model, objective=objective)
                if not entries:
                    continue
                picks: dict[str, _Pick] = {
                    name: lambda result, name=name: result[name]  # type: ignore[misc]
                    for name in IMPLICIT_COLUMNS
                }
                group = {"group": f"{model.upper()}, {title}"}
                record = {"method": OBJECTIVE_NAMES[objective]} | _over_seeds(entries, picks)
                records.append(group | record)
        records += _skipped(results, f"implicit/{dataset}", title)
    s = settings_of(results, "implicit")
    return _table(
        results,
        "implicit",
        "Auto-encoders with implicit encoders",
        "The entropy's gradient from a score network of the latents, trained by SSM or FD-SSM "
        f"(ε = {said(s, 'epsilon')}) with the same noise and directions; mean ± sample standard "
        "deviation over seeds. Reconstruction: cross-entropy of held-out images, summed over "
        "pixels. NLL bound: importance-weighted, of the VAE, a Gaussian fitted to the encoder's "
        "samples as proposal. FD[digits-cnn]: of "
        f"{said(s, 'samples')} decoded samples of the prior from the training images; fewer have "
        f"a higher one.{_held_out(results)} "
        "Latents: Fréchet distance of held-out images' latents from N(0, I) themselves. "
        f"{said(s, 'latent_dim')} latent dimensions, {said(s, 'iterations')} rounds of "
        f"{said(s, 'batch_size')}, each of {said(s, 'score_steps')} steps of the score network and "
        f"one of the auto-encoder, which begins after {said(s, 'warm_up')} rounds; RMSProp at "
        f"{said(s, 'score_learning_rate')} and {said(s, 'learning_rate')}.",
        records,
        IMPLICIT_COLUMNS,
    )


IMPLICIT_COLUMNS = {
    "reconstruction": "Reconstruction, nats ↓",
    "bound": "NLL bound, nats ↓",
    "distance": "FD[digits-cnn] ↓",
    "latent_distance": "Latents ↓",
    "seconds": "Time",
    "score_seconds": "of the score",
}
_TIMES = ("seconds", "score_seconds")
_ERRORS = ("truncation", "rounding")


def _held_out(results: TrialResults) -> str:
    """The distance of held-out images themselves, which is of their number, by data set."""
    words = []
    for dataset, title in IMAGE_NAMES.items():
        done = [e.result for e in results.of("implicit", dataset=dataset) if e.result is not None]
        if done:
            of = f"{number(done[0]['n_held_out'])} held-out images of {title}"
            words.append(f"the {of} have {number(done[0]['held_out_distance'])}")
    return f" For scale, {joined(words, '; ')}." if words else ""


def _over_seeds(entries: list[TrialResult], picks: Mapping[str, _Pick]) -> dict[str, Any]:
    """Return means and spreads of what is picked from the finished results, and the status."""
    done = [entry.result for entry in entries if entry.result is not None]
    record: dict[str, Any] = {"n_seeds": len(done), "status": statuses_of(entries)}
    for name, pick in picks.items():
        mean, spread = mean_and_spread(pick(result) for result in done)
        record |= {name: mean, f"{name}_std": spread}
    kind = "ours" if done or not entries else row_kind(entries[0])["kind"]
    return record | {"kind": kind}


def _skipped(results: TrialResults, name: str, title: str) -> list[dict[str, Any]]:
    return [
        {"group": title, "method": "—", "status": f"skipped: {s['reason']}", "kind": "pending"}
        for s in results.plan.skipped
        if s["name"] == name
    ]


def _found(results: TrialResults, kind: str, key: str, otherwise: Any) -> Any:
    return next((e.result[key] for e in results.of(kind) if e.result is not None), otherwise)


def _table(
    results: TrialResults,
    name: str,
    title: str,
    caption: str,
    records: list[dict[str, Any]],
    columns: dict[str, str],
) -> Table:
    spreads = [c for column in columns for c in (column, f"{column}_std")]
    raw = frame(records, "kind", "group", "method", "n_seeds", *spreads, "status")
    rows = raw.to_dict("records")
    shown: dict[str, Any] = {
        "Data set": raw["group"],
        "Objective": raw["method"],
        "Seeds": [number(row["n_seeds"]) for row in rows],
    }
    for column, heading in columns.items():
        if column in _TIMES:
            shown[heading] = [duration(row[column]) for row in rows]
        elif column in _ERRORS:
            shown[heading] = [number(row[column], 2) for row in rows]
        else:
            shown[heading] = [with_spread(row[column], row[f"{column}_std"]) for row in rows]
    display = pd.DataFrame(shown | {"Status": raw["status"]}, dtype="str")
    return Table(
        name=name,
        title=title,
        caption=f"{caption} {conditions_of(results, [name])}",
        raw=raw,
        display=display,
        kinds=tuple(raw["kind"]),
        numeric=tuple(display.columns[2:-1]),
    )
