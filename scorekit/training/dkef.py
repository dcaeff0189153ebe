"""Training a deep kernel exponential family with any score matching objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scorekit.models.dkef import DKEF, ScoreMatchingQuadratic

#: (log density, rows (B, D), step) -> loss (B,); the log density takes any (B', D) to (B',).
DKEFObjective = Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]
#: Ridges between which the last one is chosen.
RIDGES = (1e-10, 1e2)


@dataclass(frozen=True, kw_only=True)
class DKEFSettings:
    """How a DKEF is trained; the defaults are those of the authors' experiments.

    ``batch_size`` rows of which one half determines alpha and the other the loss; Adam at
    ``learning_rate`` with the gradient clipped to norm ``clip``; the loss on the validation rows
    every ``interval`` steps, until ``patience`` steps bring no better one or ``max_steps`` is
    reached.
    """

    n_inducing: int = 200
    n_kernels: int = 3
    hidden: int = 30
    batch_size: int = 200
    learning_rate: float = 1e-2
    clip: float = 1.0
    patience: int = 200
    interval: int = 20
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        least = {"n_inducing": 2, "n_kernels": 1, "hidden": 1, "batch_size": 2}
        for name, low in {**least, "patience": 1, "interval": 1, "max_steps": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {low}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be a positive number")


@dataclass(frozen=True, kw_only=True, eq=False)
class DKEFFit:
    """A trained model, with alpha of all training rows at the ridge best for the validation rows.

    ``steps``, ``valid_losses`` and ``ridges`` are those of the evaluations: exact score matching
    whatever the objective, so that objectives can be compared, and the ridge as trained so far.
    ``best_step`` is the model's. ``valid_loss`` is the last, at the last alpha.
    """

    model: DKEF
    best_step: int
    valid_loss: float
    steps: list[int]
    valid_losses: list[float]
    ridges: list[float]


def fit_dkef(
    train: Tensor,
    valid: Tensor,
    objective: DKEFObjective,
    settings: DKEFSettings | None = None,
    *,
    seed: int = 0,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> DKEFFit:
    """Train on rows (N, D) of one dtype and device, which are the model's.

    Each step solves for alpha on one half of a batch and descends the objective's mean over the
    other, through the solution, in the kernel, the inducing points, q0 and the ridge (Wenliang et
    al. 2019). At the end alpha is solved for on all of ``train`` and the ridge chosen exactly,
    where the authors take 1,000 steps. ``objective`` is given the step for its own random numbers.
    Deterministic per seed on one CPU and thread count. Raises ValueError for rows that are too few
    or not finite, and FloatingPointError where training diverges.
    """
    settings = settings or DKEFSettings()
    _check(train, valid, settings)
    rng = np.random.Generator(np.random.Philox(seed))
    first = torch.from_numpy(rng.permutation(len(train))[: settings.n_inducing]).to(train.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DKEF(train[first].cpu(), n_kernels=settings.n_kernels, hidden=settings.hidden).to(
            train.device
        )
    optimiser = torch.optim.Adam(model.parameters(), settings.learning_rate)
    steps: list[int] = []
    losses: list[float] = []
    ridges: list[float] = []
    best, best_step, best_state = math.inf, 0, copy.deepcopy(model.state_dict())
    for step, batch in zip(
        range(1, settings.max_steps + 1), _batches(train, settings.batch_size, rng), strict=False
    ):
        _train_step(model, optimiser, batch, objective, settings.clip, step)
        if step % settings.interval and step != settings.max_steps:
            continue
        ridge = model.ridge.detach()
        alpha = model.quadratic_over(train[: len(valid)]).minimiser(ridge)
        loss = float(model.quadratic_over(valid).value(alpha))
        steps.append(step)
        losses.append(loss)
        ridges.append(float(ridge))
        if on_evaluation:
            on_evaluation(step, loss)
        if loss < best:
            best, best_step, best_state = loss, step, copy.deepcopy(model.state_dict())
        if step - best_step >= settings.patience:
            break
    model.load_state_dict(best_state)
    final, last = model.quadratic_over(train), model.quadratic_over(valid)
    with torch.no_grad():
        model.log_ridge.fill_(math.log(best_ridge(final, last)))
        model.alpha.copy_(final.minimiser(model.ridge))
    return DKEFFit(
        model=model.eval(),
        best_step=best_step,
        valid_loss=float(last.value(model.alpha)),
        steps=steps,
        valid_losses=losses,
        ridges=ridges,
    )


def best_ridge(train: ScoreMatchingQuadratic, valid: ScoreMatchingQuadratic) -> float:
    """Return the ridge in 1e-10..1e2 whose alpha on ``train`` has the least loss on ``valid``."""
    from scipy.optimize import minimize_scalar  # slow to import

    values, vectors = torch.linalg.eigh(train.gram)
    # A gram matrix has no negative eigenvalue but by rounding.
    values, linear = values.clamp(min=0), vectors.T @ train.linear

    def loss(log_ridge: float) -> float:
        return float(valid.value(-(vectors @ (linear / (values + math.exp(log_ridge))))))

    logs = np.linspace(math.log(RIDGES[0]), math.log(RIDGES[1]), 61)
    at = int(np.argmin([loss(log) for log in logs]))
    around = (logs[max(at - 1, 0)], logs[min(at + 1, len(logs) - 1)])
    return float(np.exp(minimize_scalar(loss, bounds=around, method="bounded").x))


def _train_step(
    model: DKEF,
    optimiser: torch.optim.Optimizer,
    batch: Tensor,
    objective: DKEFObjective,
    clip: float,
    step: int,
) -> None:
    solving, judging = batch.chunk(2)
    try:
        alpha = model.quadratic(solving).minimiser(model.ridge)
    except torch.linalg.LinAlgError as error:
        raise FloatingPointError(
            f"training diverged at step {step}: no alpha, its system is not positive definite"
        ) from error
    loss = objective(lambda x: model(x, alpha), judging, step).mean()
    optimiser.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if not math.isfinite(loss.item() + norm.item()):
        raise FloatingPointError(
            f"training diverged at step {step}: loss {loss.item()}, gradient norm {norm.item()}"
        )
    optimiser.step()


def _batches(rows: Tensor, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield whole batches, epoch after epoch, each in an order of its own."""
    while True:
        order = torch.from_numpy(rng.permutation(len(rows))).to(rows.device)
        for index in order[: len(rows) // size * size].split(size):
            yield rows[index]


def _check(train: Tensor, valid: Tensor, settings: DKEFSettings) -> None:
    if train.ndim != 2 or valid.ndim != 2 or train.shape[1] != valid.shape[1] or not len(valid):
        raise ValueError(
            f"train has shape {tuple(train.shape)} and valid {tuple(valid.shape)}; (N, D) and "
            "(N', D) are needed"
        )
    if len(train) < (least := max(settings.n_inducing, settings.batch_size)):
        raise ValueError(f"train has {len(train)} rows; at least {least} are needed")
    for name, rows in (("train", train), ("valid", valid)):
        if bad := int((~rows.isfinite()).any(1).sum()):
            raise ValueError(f"{name} has NaN or infinity in {bad} of {len(rows)} rows")
