"""What a training is called in tables and figures: no two of a data set alike."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations.pipeline.cell import Cell

_KINDS = {
    "normalisation": "conditional",
    "inverse_sigma": "s(x)/σ",
    "edm": "preconditioned",
    "none": "blind",
}
_PLAIN = {"noise_levels": "ladder", "loss_weights": "own"}


def training_labels(cells: Iterable[Cell]) -> dict[str, str]:
    """Return a name for the training of each cell, by its stage's digest.

    Conditioning, L and objective; trainings of a data set that agree in these have the settings
    besides in which they differ. Seeds of one training share its name.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    labels: dict[str, str] = {}
    for cell in cells:
        stage = cell.train_stage()
        # Averages are made on the way, and make no other training of it.
        apart = ("seed", "ema_profiles")
        settings = {key: value for key, value in stage.settings.items() if key not in apart}
        if cell.network_sha256:
            labels[stage.digest] = f"from {Path(cell.network_path).name}"
            continue
        groups[cell.data.name, _common_name(cell)][stage.digest] = settings
    for (_, name), trainings in groups.items():
        texts = _differences(list(trainings.values()))
        labels |= {d: name + text for d, text in zip(trainings, texts, strict=True)}
    return labels


def _common_name(cell: Cell) -> str:
    kind = _KINDS.get(cell.train.resolved_conditioning, cell.train.resolved_conditioning)
    objective = "" if cell.train.objective == "dsm" else f", {cell.train.objective}"
    return f"{kind}, L={cell.train.n_levels}{objective}"


def _differences(trainings: list[dict[str, Any]]) -> list[str]:
    texts = [""] * len(trainings)
    for key in dict.fromkeys(key for training in trainings for key in training):
        # What came later than others is there only where it is set.
        values = [training.get(key, _PLAIN.get(key)) for training in trainings]
        if len(set(map(str, values))) > 1:
            # In few digits where they tell the values apart.
            short = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
            same = len(set(short)) == len(set(map(str, values)))
            shown = short if same else list(map(str, values))
            texts = [f"{text}, {key}={value}" for text, value in zip(texts, shown, strict=True)]
    return texts
