"""Published distances against the step size, beside what the rules give on the same ladder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from ablations.reporting.table import Column, Table
from ablations.reporting.wording import number, step_rules
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.style import dataset_order
from scorekit.techniques.table_4 import published

_COLUMNS = ["sampler", "n_steps_each", "adversarial", "epsilon", "fid", "fid_denoised"]


def step_size_table(results: Results) -> Table | None:
    """FID over epsilon as others measured it, and each rule's epsilon; None without CIFAR-10.

    Rows of a rule have no distance: none was measured at exactly its epsilon.
    """
    if not any(quoted.family(name) == "CIFAR-10" for name in dataset_order(results)):
        return None
    records: list[dict[str, Any]] = []
    for (sampler, n, adversarial), points in quoted.STEP_SIZE_CURVES.items():
        key = {"sampler": sampler, "n_steps_each": n, "adversarial": adversarial}
        rows: list[dict[str, Any]] = [
            key
            | {"epsilon": epsilon, "fid": without, "fid_denoised": denoised}
            | {"source": quoted.STEP_SIZE_SOURCE, "kind": "paper"}
            for epsilon, without, denoised in points
        ]
        rows += [
            key | {"epsilon": epsilon, "step_rule": rule, "source": "computed", "kind": "reference"}
            for rule, epsilon in _rules(sampler, n).items()
        ]
        records += sorted(rows, key=lambda row: row["epsilon"])
    raw = pd.DataFrame(records, columns=[*_COLUMNS, "step_rule", "source", "kind"])
    columns = (
        Column("Sampler", raw["sampler"]),
        Column("Steps at each scale", map(number, raw["n_steps_each"]), number=True),
        Column(
            "Network",
            [
                "NCSNv2 trained with an adversarial term" if value else "NCSNv2"
                for value in raw["adversarial"]
            ],
        ),
        Column("ε", map(number, raw["epsilon"]), number=True, by="epsilon"),
        Column("Rule of ε", raw["step_rule"].fillna("—")),
        Column("FID ↓", map(number, raw["fid"]), number=True),
        Column("FID, denoised ↓", map(number, raw["fid_denoised"]), number=True),
        Column("Source", raw["source"]),
    )
    return Table(
        name="step_sizes",
        title="Published distance against the step size",
        caption=(
            f"Quoted from {quoted.STEP_SIZE_SOURCE}: CIFAR-10, L = 232 from σ₁ = 50 to 0.01, n = "
            "5,000 samples, EMA 0.9999; points chosen from their curves. None of these distances "
            "was measured here. Rows without one say where a rule's ε lies among them. "
            f"{step_rules(raw['step_rule'])}"
        ),
        raw=raw,
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def _rules(sampler: str, n_steps_each: int) -> dict[str, float]:
    """Each rule's epsilon on Table 4's ladder, Technique 4's for the same steps at each scale."""
    ladder = replace(published("NCSNv2", "cifar10").ladder, n_steps_each=n_steps_each)
    rules = ("Technique 4", "consistent" if sampler == "consistent" else "steady state")
    return {rule: ladder.by_rule(rule).step_size for rule in rules}
