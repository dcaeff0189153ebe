"""What epsilon does to DKEF on the UCI tables."""

from __future__ import annotations

import math
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ablations.studies.finite_difference.experiments.learning import (
    Found,
    Progress,
)
from kernels.philox import philox_key
from scorekit.data.tabular import load_table
from scorekit.models.normaliser import log_normaliser
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import score_matching_loss
from scorekit.training.dkef import DKEFObjective, DKEFSettings, fit_dkef


def dkef(settings: dict[str, Any], directory: Path, progress: Progress, data_root: Path) -> Found:
    """Train a DKEF by FD-SSM at one epsilon (None: by SSM); negative log likelihood of test rows.

    In nats of the whitened rows, as in the authors' experiments: what whitening adds is constant.
    The normaliser is estimated twice: with the authors' proposals, and with ones around the data.
    """
    seed, device = settings["seed"], settings["device"]
    table = load_table(settings["table"], data_root, seed=seed, noise=settings["noise"])
    train, valid, test = (
        rows.to(device, torch.float32) for rows in (table.train, table.valid, table.test)
    )
    names = ("n_inducing", "n_kernels", "hidden", "batch_size", "max_steps", "interval")
    fit_settings = DKEFSettings(**{name: settings[name] for name in names})
    total = fit_settings.max_steps
    started = perf_counter()
    fit = fit_dkef(
        train,
        valid,
        _sliced(settings["epsilon"], seed, device),
        fit_settings,
        seed=seed,
        on_evaluation=lambda step, loss: progress(step / total, f"step {step}, loss {loss:.4g}"),
    )
    seconds = perf_counter() - started
    with torch.no_grad():
        mean = float(torch.cat([fit.model(part) for part in test.split(1024)]).double().mean())
    if not math.isfinite(mean):
        raise FloatingPointError(f"DKEF diverged: the test rows' mean log density is {mean}")
    n = settings["n_importance"]
    likelihoods = {}
    for name, around in (("broad", None), ("around", train[: settings["n_around"]])):
        progress(1.0, f"importance sampling, {name}")
        found = log_normaliser(fit.model, table.dim, n=n, around=around, seed=seed, device=device)
        likelihoods[name] = {
            "nll": found.value - mean,
            "standard_error": found.standard_error,
            "effective_sample_size": found.effective_sample_size,
        }
    return {
        "likelihoods": likelihoods,
        "valid_loss": fit.valid_loss,
        "best_step": fit.best_step,
        "last_step": fit.steps[-1],
        "seconds": seconds,
        "dim": table.dim,
        "rows": [len(train), len(valid), len(test)],
    }, []


def _sliced(epsilon: float | None, seed: int, device: str) -> DKEFObjective:
    key = philox_key(seed, device)

    def objective(log_density: Any, rows: Tensor, step: int) -> Tensor:
        index = torch.arange(len(rows), device=rows.device)
        at = torch.tensor(step, device=rows.device)
        v = projections("sphere", key, index, at, (rows.shape[1],))
        return score_matching_loss(
            log_density,
            rows,
            objective="ssm" if epsilon is None else "fd_ssm",
            energy=True,
            projection=v,
            epsilon=epsilon,
        )

    return objective
