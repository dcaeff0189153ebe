"""Images to features, through torch-fidelity: its Inception-v3, small networks, a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

# Both register extractors with torch-fidelity.
import scorekit.metrics.dinov2
import scorekit.metrics.extractors  # noqa: F401
from kernels.precision import float32_precision
from scorekit.metrics.spaces import (
    FEATURE_LAYERS,
    INCEPTION,
    LOGITS_LAYERS,
    OWN_EXTRACTORS,
    REGISTERED_LAYER,
    WEIGHTS_OPTIONS,
    MetricError,
    known_extractors,
)
from scorekit.runtime.memory import ShrinkingBatch


def register_extractor(
    name: str, factory: Callable[[], Callable[[torch.Tensor], torch.Tensor]]
) -> None:
    """Make a feature extractor of your own known by `name`, to torch-fidelity too.

    `factory()` returns a module (or function) from uint8 (B, C, H, W) to float (B, d). Raises
    MetricError where the name is taken.
    """
    there = FEATURE_EXTRACTORS_REGISTRY.get(name)
    # torch-fidelity forgets none, ours may have been: the adapter makes what is registered now.
    if name in OWN_EXTRACTORS or there not in (None, _FactoryExtractor):
        raise MetricError(f"extractor={name}: is already registered; choose another name")
    if there is None:
        torch_fidelity.register_feature_extractor(name, _FactoryExtractor)
    OWN_EXTRACTORS[name] = factory


class _FactoryExtractor(FeatureExtractorBase):
    """Adapter from a user's factory to torch-fidelity's interface."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)
        self.function = OWN_EXTRACTORS[name]()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (REGISTERED_LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return REGISTERED_LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.function(x),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What an extractor gave for n images: features (n, d), logits (n, k) or None; float32."""

    features: np.ndarray
    logits: np.ndarray | None


def extract_features(
    images: np.ndarray | torch.Tensor,
    extractor: str,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    weights_path: str | Path | None = None,
) -> np.ndarray:
    """Return only the features (n, d) of :func:`extract`, with its arguments and errors."""
    return extract(
        images, extractor, batch_size=batch_size, device=device, weights_path=weights_path
    ).features


def extract(
    images: np.ndarray | torch.Tensor,
    extractor: str,
    *,
    batch_size: int | ShrinkingBatch = 256,
    device: str | torch.device = "cpu",
    weights_path: str | Path | None = None,
) -> Features:
    """Map uint8 images (n, C, H, W) to features and logits in one pass, never with TF32.

    Deterministic, and to rounding independent of `batch_size`, which is halved where the device's
    memory is too small (BatchTooLarge where it is so for one image). Logits are those of the
    Inception score (Inception's without the bias of its last layer, as torch-fidelity takes them);
    an extractor that a user registered has none. `weights_path` is needed for `inception-v3-compat`
    (2048 features) and `dinov2-vitl14` (1024), for which grey images are repeated to RGB. Raises
    MetricError for an unknown extractor, absent weights, and images that are not uint8 (n, C, H, W)
    of a size and channel count that the extractor takes; CorruptFile where the weights given for an
    extractor of ours are not its weights.
    """
    if not isinstance(batch_size, ShrinkingBatch):
        if batch_size < 1:
            raise MetricError(f"batch_size={batch_size}: a whole number from 1 is right")
        batch_size = ShrinkingBatch(batch_size, "feature extraction")
    if images.ndim != 4 or images.dtype not in (np.uint8, torch.uint8) or len(images) == 0:
        raise MetricError(
            f"images: {images.dtype} {tuple(images.shape)} given; non-empty uint8 "
            "(N, C, H, W) is right"
        )
    if extractor == INCEPTION and images.shape[1] not in (1, 3):
        raise MetricError(f"images: {images.shape[1]} channels; {INCEPTION} takes 1 or 3")
    network, device = _create(extractor, weights_path).to(device), torch.device(device)

    def outputs_of(first: int, last: int) -> list[np.ndarray]:
        batch = images[first:last]
        x = torch.from_numpy(np.array(batch)) if isinstance(batch, np.ndarray) else batch
        x = x.to(device)
        if extractor == INCEPTION and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        try:
            outputs = network(x)
        except ValueError as error:
            raise MetricError(f"extractor={extractor}: {error}") from error
        for output in outputs:
            if output.ndim != 2 or len(output) != len(x):
                raise MetricError(
                    f"extractor={extractor}: gave {tuple(output.shape)} for "
                    f"{len(x)} images; ({len(x)}, d) is right"
                )
        return [output.float().cpu().numpy() for output in outputs]

    # TF32 convolutions would move features by 1e-3, and so depend on the GPU.
    with torch.no_grad(), float32_precision():
        rows = batch_size.run(len(images), outputs_of)
    features, *logits = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Features(features=features, logits=logits[0] if logits else None)


def _create(extractor: str, weights_path: str | Path | None) -> FeatureExtractorBase:
    if extractor not in (known := known_extractors()):
        raise MetricError(f"extractor={extractor}: unknown; known are {', '.join(known)}")
    if extractor in WEIGHTS_OPTIONS:
        option, name, file = WEIGHTS_OPTIONS[extractor]
        expected = f"give {file} with {option} PATH"
        if weights_path is None:
            raise MetricError(f"extractor={extractor}: needs weights; {expected}")
        if not Path(weights_path).is_file():
            raise MetricError(f"{option} {weights_path}: no such file; {expected}")
        try:
            if extractor == INCEPTION:
                # torch-fidelity unpickles it without restriction: let only tensors get there.
                torch.load(weights_path, map_location="cpu", weights_only=True)
            return _fidelity_extractor(extractor, weights_path)
        except Exception as error:  # unpicklers raise nearly anything on other files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise MetricError(
                f"{option} {weights_path}: holds no {name} weights ({reason}); {expected}"
            ) from error
    if weights_path is not None and not Path(weights_path).is_file():
        raise MetricError(f"weights_path={weights_path}: no such file")
    return _fidelity_extractor(extractor, weights_path)


def _fidelity_extractor(extractor: str, weights_path: str | Path | None) -> FeatureExtractorBase:
    path = None if weights_path is None else str(weights_path)
    layers = [FEATURE_LAYERS.get(extractor, REGISTERED_LAYER)]
    if extractor in LOGITS_LAYERS:
        layers.append(LOGITS_LAYERS[extractor])
    return create_feature_extractor(
        extractor,
        layers,
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=path,
    )
