"""Settings that a cell does not take: refused or named, since a user who set them expects them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ablations.pipeline.cell import Cell
from ablations.studies.ncsnv2.settings import STEP_RULE_NAMES
from scorekit.sampling.registry import sampler_kind

#: Settings of a training that a cell that has none does not take.
CHECKPOINTS_OWN = (
    *("width", "iterations", "batch_size", "learning_rate", "adam_eps", "amsgrad"),
    *("ema_momentum", "flip", "dequantisation", "snapshot_interval", "test_interval"),
)


def without_effect(cell: Cell, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings, of those given, that ``cell`` does not have, each with what it has.

    A setting that a cell has no field for shapes others, or how it is run, and is not looked at.
    """
    found = {}
    for key, value in overrides.items():
        if key in CHECKPOINTS_OWN and cell.network_sha256 and value is not None:
            found[key] = "where a checkpoint is sampled and nothing trained"
            continue
        share = key == "sampling_levels" and value is not None and value < 1
        if value is None or share or (key, value) == ("n_levels", 0):
            continue  # what the cell has is derived from it
        if key == "score_evaluations":
            # What a cell takes is its own number; this one chose T, unless something else did.
            if not cell.variant.noise_scales:
                found[key] = "without group (1,2,4) T is NCSN's own"
            elif given := [k for k in ("n_steps_each", "preset") if overrides.get(k) is not None]:
                found[key] = f"where {given[0]} gives T"
            continue
        owner = next((part for part in (cell, cell.train) if hasattr(part, key)), None)
        if key in ("ema_momentum", "ema") and not cell.variant.ema:
            found[key] = "where raw weights are sampled"
        elif key == "step_size" and not sampler_kind(cell.sampler).step_size:
            found[key] = f"where sampler = {cell.sampler}"
        elif key == "step_size_rule":
            if cell.step_rule != STEP_RULE_NAMES[value]:
                found[key] = f"where the rule is {cell.step_rule}"
        elif key == "coverage" and not cell.variant.noise_scales:
            found[key] = "without group (1,2,4) the noise scales are NCSN's own"
        elif owner is not None and getattr(owner, key) != value:
            found[key] = f"where {key} = {_text(getattr(owner, key))}"
    return found


def describe_without_effect(
    cells: Iterable[Cell], overrides: Mapping[str, Any], required: Collection[str] = ()
) -> list[str]:
    """Return a line for each setting that some rows do not take.

    Raises ValueError for one of ``required`` that no row takes.
    """
    rows: dict[tuple[str, str], dict[str, None]] = {}
    taken: set[str] = set()
    for cell in cells:
        found = without_effect(cell, overrides)
        taken |= set(overrides) - set(found)
        for item in found.items():
            rows.setdefault(item, {})[cell.label] = None
    lines = []
    for (key, reason), labels in rows.items():
        which = "; ".join(labels) if key in taken else "any row"
        line = f"{key} = {_text(overrides[key])} has no effect on {which}, {reason}"
        if key in required and key not in taken:
            raise ValueError(f"--set {key}: {line}; leave it out")
        lines.append(f"warning: {line}")
    return lines


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
