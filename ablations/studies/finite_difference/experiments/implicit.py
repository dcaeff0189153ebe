"""What the trials of implicit compute: auto-encoders whose entropy gradient is a learned score."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablations.studies.finite_difference.data import load_images
from ablations.studies.finite_difference.experiments.learning import (
    FIXED_STEP,
    Found,
    Learner,
    Progress,
)
from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from scorekit.data.pixels import to_float, to_uint8
from scorekit.files import save_array
from scorekit.metrics.frechet import feature_statistics, frechet_distance
from scorekit.models.implicit_encoders import (
    Decoder,
    ImplicitEncoder,
    LatentScore,
    implicit_autoencoder_loss,
    likelihood_bound,
)
from scorekit.models.seeded import seeded
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import score_matching_loss

VAE, WAE = "vae", "wae"
EXTRACTOR = "digits-cnn"
#: Decoded samples that are kept to be looked at.
N_SHOWN = 48
#: Latent samples of each image, from which a Gaussian proposal is fitted, and importance samples.
_N_FITTED, _N_IMPORTANCE = 256, 512


class _Autoencoder(nn.Module):
    def __init__(self, encoder: ImplicitEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def implicit(
    settings: dict[str, Any], directory: Path, progress: Progress, data_root: Path
) -> Found:
    """Train a VAE or a WAE with an implicit encoder; the score of its latents by one objective.

    By turns ``score_steps`` steps of the score network on fresh latents and one of the
    auto-encoder, which begins after ``warm_up`` rounds of the former.
    """
    # Imported here: torch-fidelity costs seconds that other trials have no use for.
    from scorekit.metrics.features import extract_features

    device, total = settings["device"], settings["iterations"]
    train, test = (to_float(part) for part in load_images(settings["dataset"], data_root))
    train, test = train.to(device), test[: settings["n_held_out"]].to(device)
    run = _Run(settings, train)
    for iteration in range(1, total + 1):
        run.round(iteration)
        if iteration % 50 == 0 or iteration == total:
            run.check(iteration)
            progress(iteration / total, f"iteration {iteration}/{total}")
    model = run.autoencoder.model
    key = philox_key(settings["seed"], device)
    with torch.no_grad():
        noise = run.noise(key, len(test), FIXED_STEP)
        z = model.encoder(test, noise)
        loss = implicit_autoencoder_loss(
            model.encoder, model.decoder, torch.zeros_like, test, noise
        )
        prior = run.noise(key, settings["samples"], FIXED_STEP + 1)
        samples = to_uint8(torch.sigmoid(model.decoder(prior)).cpu()).numpy()
    reference = feature_statistics(_features(extract_features, to_uint8(train.cpu()), device))
    result: dict[str, Any] = {
        "reconstruction": float(loss.reconstruction.double().mean()),
        "distance": frechet_distance(
            feature_statistics(_features(extract_features, samples, device)), reference
        ),
        "held_out_distance": frechet_distance(
            feature_statistics(_features(extract_features, to_uint8(test.cpu()), device)), reference
        ),
        "n_held_out": len(test),
        "latent_distance": _from_the_prior(z),
        "seconds": run.autoencoder.seconds + run.score.seconds,
        "score_seconds": run.score.seconds,
        "bound": None,
        "effective_sample_size": None,
    }
    if settings["model"] == VAE:
        found = likelihood_bound(
            model.encoder,
            model.decoder,
            test[: settings["n_bound"]],
            seed=settings["seed"],
            n_fitted=_N_FITTED,
            n_importance=_N_IMPORTANCE,
        )
        result["bound"] = -float(found.log_likelihood.mean())
        result["effective_sample_size"] = float(found.effective_sample_size.mean())
    for name, value in result.items():
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(f"training diverged: {name} is {value}")
    return result, [save_array(directory / "samples.npy", samples[:N_SHOWN])]


class _Run:
    """The two learners of a trial, and its noise."""

    def __init__(self, settings: dict[str, Any], train: Tensor) -> None:
        self.settings, self.train, self.device = settings, train, settings["device"]
        shape: Any = tuple(train.shape[1:])
        latent, width = settings["latent_dim"], settings["width"]
        condition = math.prod(shape) if settings["model"] == VAE else 0
        autoencoder = seeded(
            settings["seed"],
            lambda: _Autoencoder(
                ImplicitEncoder(shape, latent, latent, width), Decoder(shape, latent, width)
            ),
        )
        score = seeded(settings["seed"] + 1, lambda: LatentScore(latent, condition, width))
        # The authors' optimiser for these models.
        rms = torch.optim.RMSprop
        self.autoencoder = Learner(autoencoder, settings["learning_rate"], self.device, rms)
        self.score = Learner(score, settings["score_learning_rate"], self.device, rms)
        self.key = philox_key(settings["seed"], self.device)

    def noise(self, key: Tensor, size: int, step: int) -> Tensor:
        """Return standard normal noise of the latents' dimension."""
        index = torch.arange(size, device=self.device)
        at = torch.tensor(step, device=self.device)
        return philox_normal(key, index, at, (self.settings["latent_dim"],), Stream.PERTURBATION)

    def round(self, iteration: int) -> None:
        """Take the steps of one iteration, all on one batch of images."""
        settings = self.settings
        size, per_round = settings["batch_size"], settings["score_steps"] + 1
        index = torch.arange(size, device=self.device)
        at = torch.tensor(iteration, device=self.device)
        rows = philox_integers(self.key, index, at, len(self.train), Stream.NOISE_LEVEL)
        x = self.train[rows]
        encoder = self.autoencoder.model.encoder

        def score(z: Tensor, network: LatentScore) -> Tensor:
            return network(z, x if settings["model"] == VAE else None)

        for k in range(settings["score_steps"]):
            step = iteration * per_round + k
            with torch.no_grad():
                z = encoder(x, self.noise(self.key, size, step))
            now = torch.tensor(step, device=self.device)
            v = projections("rademacher", self.key, index, now, (settings["latent_dim"],))
            self.score.step(partial(self._objective, score=score, z=z, v=v))
        if iteration <= settings["warm_up"]:
            return
        noise = self.noise(self.key, size, iteration * per_round + per_round - 1)
        self.autoencoder.step(
            lambda model: (
                implicit_autoencoder_loss(
                    model.encoder,
                    model.decoder,
                    lambda z: score(z, self.score.model),
                    x,
                    noise,
                ).surrogate
            )
        )

    def _objective(
        self,
        network: LatentScore,
        score: Callable[[Tensor, LatentScore], Tensor],
        z: Tensor,
        v: Tensor,
    ) -> Tensor:
        objective = self.settings["objective"]
        return score_matching_loss(
            lambda z: score(z, network),
            z,
            objective=objective,
            energy=False,
            projection=v,
            epsilon=self.settings["epsilon"] if objective.startswith("fd_") else None,
        )

    def check(self, iteration: int) -> None:
        """Raise FloatingPointError where a loss was not finite."""
        self.score.check("the score of the latents", iteration)
        self.autoencoder.check("the auto-encoder", iteration)


def _features(extract_features: Any, images: Tensor | np.ndarray, device: str) -> np.ndarray:
    return extract_features(images, EXTRACTOR, device=device)


def _from_the_prior(z: Tensor) -> float:
    """Return the Fréchet distance of latents (N, D) from N(0, I)."""
    found = feature_statistics(z.double().cpu().numpy())
    dim = z.shape[1]
    prior = type(found)(mean=np.zeros(dim), covariance=np.eye(dim), n=found.n)
    return frechet_distance(found, prior)
