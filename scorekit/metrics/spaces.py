"""Feature spaces: their names, their weights and what a distance in each is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from scorekit.files import sha256_file

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
DINOV2 = "dinov2-vitl14"
DINOV2_FILE = "dinov2_vitl14_pretrain.pth"
#: Of each space that ships no weights the option that gives them, their name, and the file.
WEIGHTS_OPTIONS = {
    INCEPTION: ("--inception-weights", "Inception", f"torch-fidelity's {INCEPTION_FILE}"),
    DINOV2: ("--dinov2-weights", "DINOv2", f"{DINOV2_FILE} of facebookresearch/dinov2"),
}
WEIGHTS = Path(__file__).parents[1] / "weights"
#: Which of an extractor's outputs is the feature space of the distance.
FEATURE_LAYERS = {
    INCEPTION: "2048",
    DINOV2: "1024",
    "digits-cnn": "64",
    "patches-cnn": "64",
    "cifar-cnn": "96",
}
#: Which of an extractor's outputs are the class logits of the Inception score.
LOGITS_LAYERS = {INCEPTION: "logits_unbiased"} | {
    name: "logits" for name in FEATURE_LAYERS if name not in WEIGHTS_OPTIONS
}
#: The one output of an extractor that a user registers.
REGISTERED_LAYER = "features"
#: What makes those: see :func:`scorekit.metrics.features.register_extractor`.
OWN_EXTRACTORS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {}


def known_extractors() -> list[str]:
    """Return the names of all extractors, those that a user registered too."""
    return sorted([*FEATURE_LAYERS, *OWN_EXTRACTORS])


#: What tables call a space whose name does not say how its images are resized.
_RESIZED = {DINOV2: f"{DINOV2}, bicubic 224"}


class MetricError(ValueError):
    """A feature extractor or statistic that cannot be had: one line saying what would be right."""


def default_extractor(
    dataset_name: str, channels: int, inception_weights: str | Path | None = None
) -> str:
    """Name the feature space for a data set: Inception where its weights are given, else ours.

    Without: `digits-cnn` for the data set "digits", `cifar-cnn` for "cifar10" and "cifar10-...",
    `patches-cnn` for any other. Raises MetricError where `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise MetricError(f"dataset={dataset_name}: {channels} channels; 1 or 3 are right")
    if inception_weights is not None:
        return INCEPTION
    if dataset_name == "cifar10" or dataset_name.startswith("cifar10-"):
        return "cifar-cnn"
    return "digits-cnn" if dataset_name == "digits" else "patches-cnn"


def distance_label(extractor: str) -> str:
    """Return "FID" for Inception's feature space, else "FD[<extractor>]"."""
    return "FID" if extractor == INCEPTION else f"FD[{_RESIZED.get(extractor, extractor)}]"


def metric_label(metric: str, extractor: str) -> str:
    """Return the metric's name, for other than Inception's features as "KID[<extractor>]"."""
    space = _RESIZED.get(extractor, extractor)
    return metric if extractor == INCEPTION else f"{metric}[{space}]"


def feature_dimension(extractor: str) -> int | None:
    """Return d of an extractor's features, or None for a user's own, which is known when it ran."""
    layer = FEATURE_LAYERS.get(extractor, REGISTERED_LAYER)
    return int(layer) if layer.isdigit() else None


def extractor_digest(extractor: str, weights_path: str | Path | None = None) -> str:
    """Return the SHA-256 of the weights behind `extractor`: the key for cached features.

    Raises MetricError where there is no one weights file (a user's own extractor without a path).
    """
    shipped = WEIGHTS / f"{extractor}.safetensors"
    if weights_path is None and extractor in FEATURE_LAYERS and shipped.exists():
        weights_path = shipped
    if weights_path is None and extractor in WEIGHTS_OPTIONS:
        option, _, file = WEIGHTS_OPTIONS[extractor]
        raise MetricError(f"extractor={extractor}: needs weights; give {file} with {option} PATH")
    if weights_path is None or not Path(weights_path).is_file():
        raise MetricError(f"extractor={extractor}: has no weights file to identify it by")
    return sha256_file(weights_path)
