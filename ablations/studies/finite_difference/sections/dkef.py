"""What epsilon does to DKEF's likelihood."""

from __future__ import annotations

import math
from typing import Any

from ablations.reporting.paired import comparison, mean_and_spread
from ablations.reporting.pictures import INK, Picture, dress_frame, shared_legend
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import number
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import (
    EXACT,
    FINITE,
    SOURCES,
    panels_of,
)
from ablations.studies.finite_difference.sections.rows import (
    conditions_of,
    frame,
    plain_table,
    row_kind,
    said,
    settings_of,
    status_of,
    statuses_of,
)
from ablations.studies.finite_difference.sections.wording import (
    SOURCE,
    TABLE_NAMES,
    between,
    method_name,
    with_spread,
)
from ablations.studies.finite_difference.trials import DEEP_EPSILONS, DKEF_EPSILONS

#: Test negative log likelihoods of DKEF on Parkinsons by epsilon (to reviewer 4).
SOURCE_NLL = {0.1: 14.17, 0.05: 13.51, 0.02: 14.03, 0.01: 14.00}


def dkef_table(results: TrialResults) -> Table:
    """Test likelihoods by data set and epsilon over the seeds, and the source's on Parkinsons."""
    records: list[dict[str, Any]] = []
    for table, title in TABLE_NAMES.items():
        entries = results.of("dkef", table=table)
        group = {"group": title}
        for epsilon in dict.fromkeys(entry.trial.settings["epsilon"] for entry in entries):
            mine = [e for e in entries if e.trial.settings["epsilon"] == epsilon]
            done = [entry.result for entry in mine if entry.result is not None]
            record = group | {
                "method": method_name(epsilon),
                "epsilon": epsilon,
                "n_seeds": len(done),
            }
            for name in ("broad", "around"):
                found = [r["likelihoods"][name] for r in done]
                mean, spread = mean_and_spread(r["nll"] for r in found)
                sizes = [round(r["effective_sample_size"]) for r in found]
                record |= {
                    f"nll_{name}": mean,
                    f"nll_{name}_std": spread,
                    f"ess_{name}_min": min(sizes, default=math.nan),
                    f"ess_{name}_max": max(sizes, default=math.nan),
                }
            record["valid_loss"] = mean_and_spread(r["valid_loss"] for r in done)[0]
            record["steps"] = max((r["last_step"] for r in done), default=None)
            record["status"] = statuses_of(mine)
            record["kind"] = "ours" if done else row_kind(mine[0])["kind"]
            records.append(record)
        for skipped in results.plan.skipped:
            if skipped["name"] == f"dkef/{table}":
                status = f"skipped: {skipped['reason']}"
                records.append(group | {"method": "—", "status": status, "kind": "pending"})
        if table == "parkinsons":
            records += [
                group
                | {
                    "method": f"{SOURCE}, {method_name(epsilon)}",
                    "epsilon": epsilon,
                    "nll_broad": nll,
                    "status": "quoted; neither seeds nor effective sample sizes given",
                    "kind": "paper",
                }
                for epsilon, nll in SOURCE_NLL.items()
            ]
    raw = frame(
        records,
        *("kind", "group", "method", "epsilon", "n_seeds", "nll_broad", "nll_broad_std"),
        *("ess_broad_min", "ess_broad_max", "nll_around", "nll_around_std", "ess_around_min"),
        *("ess_around_max", "valid_loss", "steps", "status"),
    )
    rows = raw.to_dict("records")
    columns = (
        Column("Data set", raw["group"]),
        Column("Objective", raw["method"]),
        Column("Seeds", [number(row["n_seeds"]) for row in rows], number=True),
        Column(
            "NLL, N(0, 4 I) ↓",
            [with_spread(row["nll_broad"], row["nll_broad_std"]) for row in rows],
            number=True,
        ),
        Column(
            "its effective samples",
            [between(row["ess_broad_min"], row["ess_broad_max"]) for row in rows],
            number=True,
            by="ess_broad_min",
        ),
        Column(
            "NLL, around the data ↓",
            [with_spread(row["nll_around"], row["nll_around_std"]) for row in rows],
            number=True,
        ),
        Column(
            "effective samples",
            [between(row["ess_around_min"], row["ess_around_max"]) for row in rows],
            number=True,
            by="ess_around_min",
        ),
        Column("Validation loss ↓", [number(row["valid_loss"]) for row in rows], number=True),
        Column("Steps", [number(row["steps"]) for row in rows], number=True),
        Column("Status", raw["status"]),
    )
    s = settings_of(results, "dkef")
    return Table(
        name="dkef",
        title="DKEF by ε",
        caption="Negative log likelihood of test rows in nats, after whitening, mean ± sample "
        "standard deviation over seeds; every seed has its own split. The normaliser by importance "
        f"sampling, {said(s, 'n_importance')} samples: from N(0, 4 I), as the authors, and nine in "
        "ten from around the training rows. A likelihood whose effective sample size is small says "
        "little, and is too low as a rule. Trained for at most "
        f"{said(s, 'max_steps')} steps, {_truncated(results)}with M = {said(s, 'n_inducing')} "
        f"inducing points and batches of {said(s, 'batch_size')}, in float32; directions uniform "
        "on the sphere, ε their length. SSM is the limit ε → 0 on the same batches and directions. "
        f"{conditions_of(results, ['dkef'])}",
        raw=raw,
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def dkef_trials_table(results: TrialResults) -> Table:
    """Every DKEF that was trained, with the effective sample sizes beside its likelihoods."""
    records = []
    for entry in results.of("dkef"):
        settings = entry.trial.settings
        record = {
            "group": TABLE_NAMES[settings["table"]],
            "method": method_name(settings["epsilon"]),
            "seed": entry.seed,
            "status": status_of(entry),
        }
        if (found := entry.result) is not None:
            for name in ("broad", "around"):
                record |= {
                    f"nll_{name}": found["likelihoods"][name]["nll"],
                    f"error_{name}": found["likelihoods"][name]["standard_error"],
                    f"ess_{name}": round(found["likelihoods"][name]["effective_sample_size"]),
                }
            record |= {"valid_loss": found["valid_loss"], "best_step": found["best_step"]}
            record["seconds"] = found["seconds"]
        records.append(row_kind(entry) | record)
    columns = {
        "method": "Objective",
        "seed": "Seed",
        "nll_broad": "NLL, N(0, 4 I)",
        "error_broad": "± sampling",
        "ess_broad": "effective samples",
        "nll_around": "NLL, around the data",
        "error_around": "± sampling ",
        "ess_around": "effective samples ",
        "valid_loss": "Validation loss",
        "best_step": "Best step",
        "seconds": "Time",
        "status": "Status",
    }
    return plain_table(
        "dkef_trials",
        "DKEF, every trial",
        "± sampling: the standard error of the normaliser by the delta method, which is too small "
        f"where the effective sample size is. {conditions_of(results, ['dkef'])}",
        "",
        records,
        columns,
        times=("seconds",),
    )


def _truncated(results: TrialResults) -> str:
    """Say so where training was cut off at its last step, which the authors' is not."""
    done = [e for e in results.of("dkef") if e.result is not None]
    cut = sum(e.result["last_step"] == e.trial.settings["max_steps"] for e in done if e.result)
    return f"which cut {cut} of {len(done)} trainings off (truncated training), " if cut else ""


def dkef_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    records = []

    def against_ssm(group: str, kind: str, quantity: str, pick: Any, **settings: Any) -> None:
        exact = results.done(kind, epsilon=None, **settings)
        epsilons = DEEP_EPSILONS if kind == "deep" else DKEF_EPSILONS
        for epsilon in epsilons:
            mine = results.done(kind, epsilon=epsilon, **settings)
            seeds = sorted(exact.keys() & mine.keys())
            if seeds:
                first = "SSM", [pick(exact[seed]) for seed in seeds]
                second = method_name(epsilon), [pick(mine[seed]) for seed in seeds]
                records.append(comparison(group, quantity, "difference", first, second))

    for table, title in TABLE_NAMES.items():
        for name, how in (("broad", "N(0, 4 I)"), ("around", "around the data")):

            def pick(result: dict[str, Any], name: str = name) -> float:
                return result["likelihoods"][name]["nll"]

            against_ssm(f"DKEF on {title}", "dkef", f"NLL, {how}", pick, table=table)
    against_ssm("deep energy on digits", "deep", "exact SM", lambda result: result["exact_sm"])
    return records


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
