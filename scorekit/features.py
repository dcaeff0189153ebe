"""Images to features, through torch-fidelity: its Inception-v3, small networks, a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

import scorekit.extractors  # noqa: F401  registers digits-cnn and patches-cnn with torch-fidelity
from kernels.precision import float32_precision
from scorekit.metrics import (
    FEATURE_LAYERS,
    INCEPTION,
    INCEPTION_FILE,
    REGISTERED_LAYER,
    MetricError,
)


def register_extractor(
    name: str, factory: Callable[[], Callable[[torch.Tensor], torch.Tensor]]
) -> None:
    """Make a feature extractor of your own known by `name`, to torch-fidelity too.

    `factory()` returns a module (or function) from uint8 (B, C, H, W) to float (B, d). Raises
    MetricError where the name is taken.
    """
    if name in FEATURE_EXTRACTORS_REGISTRY:
        raise MetricError(f"extractor={name}: is already registered; choose another name")
    torch_fidelity.register_feature_extractor(
        name, type("RegisteredExtractor", (_FactoryExtractor,), {"factory": staticmethod(factory)})
    )
    FEATURE_LAYERS[name] = REGISTERED_LAYER


class _FactoryExtractor(FeatureExtractorBase):
    """Adapter from a user's factory to torch-fidelity's interface."""

    factory: Callable[[], Callable[[torch.Tensor], torch.Tensor]]

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)
        self.function = self.factory()

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


def extract_features(
    images: np.ndarray | torch.Tensor,
    extractor: str,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    weights_path: str | Path | None = None,
) -> np.ndarray:
    """Map uint8 images (N, C, H, W) to float32 features (N, d), batch by batch, never with TF32.

    `weights_path` is needed for `inception-v3-compat` (2048 features; grey images are repeated to
    RGB). Raises MetricError for an unknown extractor, absent weights, and images that are not
    uint8 (N, C, H, W) of a size and channel count that the extractor takes; CorruptFile where the
    weights given for an extractor of ours are not its weights.
    """
    if batch_size < 1:
        raise MetricError(f"batch_size={batch_size}: a whole number from 1 is right")
    if images.ndim != 4 or images.dtype not in (np.uint8, torch.uint8) or len(images) == 0:
        raise MetricError(
            f"images: {images.dtype} {tuple(images.shape)} given; non-empty uint8 "
            "(N, C, H, W) is right"
        )
    if extractor == INCEPTION and images.shape[1] not in (1, 3):
        raise MetricError(f"images: {images.shape[1]} channels; {INCEPTION} takes 1 or 3")
    network, device = _create(extractor, weights_path).to(device), torch.device(device)
    # TF32 convolutions would move features by 1e-3, and so depend on the GPU.
    rows = []
    with torch.no_grad(), float32_precision():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            x = torch.from_numpy(np.array(batch)) if isinstance(batch, np.ndarray) else batch
            x = x.to(device)
            if extractor == INCEPTION and x.shape[1] == 1:
                x = x.expand(-1, 3, -1, -1)
            try:
                (features,) = network(x)
            except ValueError as error:
                raise MetricError(f"extractor={extractor}: {error}") from error
            if features.ndim != 2 or len(features) != len(x):
                raise MetricError(
                    f"extractor={extractor}: gave {tuple(features.shape)} for "
                    f"{len(x)} images; ({len(x)}, d) is right"
                )
            rows.append(features.float().cpu().numpy())
    return np.concatenate(rows)


def _create(extractor: str, weights_path: str | Path | None) -> FeatureExtractorBase:
    if extractor not in FEATURE_LAYERS:
        known = ", ".join(sorted(FEATURE_LAYERS))
        raise MetricError(f"extractor={extractor}: unknown; known are {known}")
    if extractor == INCEPTION:
        expected = f"give torch-fidelity's {INCEPTION_FILE} with --inception-weights PATH"
        if weights_path is None:
            raise MetricError(f"extractor={INCEPTION}: needs weights; {expected}")
        if not Path(weights_path).is_file():
            raise MetricError(f"--inception-weights {weights_path}: no such file; {expected}")
        try:
            # torch-fidelity unpickles the file without restriction: let only tensors get there.
            torch.load(weights_path, map_location="cpu", weights_only=True)
            return _fidelity_extractor(extractor, weights_path)
        except Exception as error:  # unpicklers raise nearly anything on other files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise MetricError(
                f"--inception-weights {weights_path}: holds no Inception weights "
                f"({reason}); {expected}"
            ) from error
    if weights_path is not None and not Path(weights_path).is_file():
        raise MetricError(f"weights_path={weights_path}: no such file")
    return _fidelity_extractor(extractor, weights_path)


def _fidelity_extractor(extractor: str, weights_path: str | Path | None) -> FeatureExtractorBase:
    path = None if weights_path is None else str(weights_path)
    return create_feature_extractor(
        extractor,
        [FEATURE_LAYERS[extractor]],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=path,
    )
