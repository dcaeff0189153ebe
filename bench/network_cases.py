"""Cases of NCSNv2, 128 filters, on 32 x 32 images, against plain eager PyTorch in float32."""

from typing import Literal

import numpy as np
import torch

from bench import plain
from bench.registry import Pair, Setting, case
from scorekit.data.store import Dataset
from scorekit.models.score_network import ScoreNetwork, forward_flops
from scorekit.runtime.compilation import autocast, precision_context
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.training.networks import build_network
from scorekit.training.settings import TrainSettings
from scorekit.training.trainer import Trainer

_STEP_SIZE, _N_STEPS_EACH = 6.2e-6, 5  # Song & Ermon (2020), Table 4: CIFAR-10
_BATCH, _TRAINING_BATCH = 8, 16


def _settings(setting: Setting, precision: Literal["fp32", "bf16"]) -> TrainSettings:
    return TrainSettings(
        architecture="32-64",
        width=setting.size(128, 2),
        conditional=False,
        sigma_begin=50.0,
        sigma_end=0.01,
        n_levels=232,
        iterations=10**6,
        batch_size=setting.size(_TRAINING_BATCH, 2),
        learning_rate=1e-4,
        precision=precision,
    )


def _flops(settings: TrainSettings, side: int) -> int:
    network = {"architecture": settings.architecture, "sigmas": torch.ones(2)}
    return forward_flops(network | {"width": settings.width}, side)


def _network(setting: Setting) -> ScoreNetwork:
    network = _built(_settings(setting, "fp32")).eval().requires_grad_(False)
    return network.to(setting.device)


def _built(settings: TrainSettings) -> ScoreNetwork:
    network = build_network(settings, 3)
    assert isinstance(network, ScoreNetwork)
    return network


@case("network forward[NCSNv2, 8x3x32x32, eager]", "network")
def _(setting: Setting) -> Pair:
    batch, side = setting.size(_BATCH, 2), setting.size(32, 8)
    contiguous, network = _network(setting), _network(setting)
    network.to(memory_format=torch.channels_last)
    x = setting.normal(batch, 3, side, side)
    level = torch.zeros(batch, dtype=torch.int64, device=setting.device)

    @torch.no_grad()
    def reference() -> torch.Tensor:
        with plain.unfused():
            return contiguous(x, level)

    @torch.inference_mode()
    def candidate() -> torch.Tensor:
        return network(x, level)

    return Pair(
        candidate=candidate,
        reference=reference,
        flops=batch * _flops(_settings(setting, "fp32"), side),
    )


def _sampling(setting: Setting, precision: Literal["fp32", "bf16"]) -> Pair:
    batch, side = setting.size(_BATCH, 2), setting.size(32, 8)
    network = _network(setting).to(memory_format=torch.channels_last)
    sampler = AnnealedLangevin(
        network.features,
        network.sigmas,
        step_size=_STEP_SIZE,
        n_steps_each=_N_STEPS_EACH,
        times_sigma=True,
        compile=not setting.tiny,
    )
    index = torch.arange(batch, device=setting.device)
    state = sampler.start(sampler.initial(index, (3, side, side)), index)

    def candidate() -> torch.Tensor:
        with (
            torch.inference_mode(),
            precision_context(precision),
            autocast(precision, setting.device.type),
        ):
            state.advance()
        return state.x

    return Pair(
        candidate=candidate,
        reference=plain.SamplingStep(_network(setting), state.x.clone()),
        random=True,
        flops=batch * _flops(_settings(setting, precision), side),
        precision=precision,
        images=batch / sampler.score_evaluations,
    )


@case("sampling step[NCSNv2, 8x3x32x32, fp32]", "sampler")
def _(setting: Setting) -> Pair:
    return _sampling(setting, "fp32")


@case("sampling step[NCSNv2, 8x3x32x32, bf16]", "sampler")
def _(setting: Setting) -> Pair:
    return _sampling(setting, "bf16")


def _training(setting: Setting, precision: Literal["fp32", "bf16"]) -> Pair:
    settings, side = _settings(setting, precision), setting.size(32, 8)
    shape = (settings.batch_size, 3, side, side)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    dataset = Dataset(name="noise", train=images, test=images, flip=True, fingerprint="none")
    device = setting.device.type
    trainer = Trainer(
        settings, dataset, setting.folder / "run", device=device, compile=not setting.tiny
    )
    iteration = iter(range(settings.iterations))
    return Pair(
        candidate=lambda: trainer.step(next(iteration)),
        reference=plain.TrainingStep(
            _built(settings).to(device),
            torch.from_numpy(images).to(device),
            settings.learning_rate,
        ),
        random=True,
        flops=3 * settings.batch_size * _flops(settings, side),
        precision=precision,
        images=settings.batch_size,
    )


@case("training step[NCSNv2, 16x3x32x32, fp32]", "training")
def _(setting: Setting) -> Pair:
    return _training(setting, "fp32")


@case("training step[NCSNv2, 16x3x32x32, bf16]", "training")
def _(setting: Setting) -> Pair:
    return _training(setting, "bf16")
