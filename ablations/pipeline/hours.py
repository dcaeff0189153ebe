"""What a grid will take in hours on this machine, from a few timed steps of each kind."""

import time
from collections.abc import Callable, Sequence

import torch

from ablations.engine.context import Context
from ablations.pipeline.cell import Cell
from ablations.pipeline.flops import cell_forward_flops
from ablations.pipeline.jobs import CellJob
from scorekit.models.score_network import ScoreNetwork
from scorekit.objectives.score_matching import annealed_score_matching_loss, needs_projection

#: One timed call is to take a tenth of a second or so on one core; a GPU takes whole batches.
_FLOPS_OF_A_CALL = 4e9
_CALLS = 5


def estimate_hours(jobs: Sequence[CellJob], context: Context) -> float:
    """Return the hours that training and sampling of the jobs take, one after another.

    Each distinct network is timed on the context's device with its threads, in eager float32: a
    training step for a training, a score evaluation for an evaluation.
    """
    torch.set_num_threads(context.threads)
    timed: dict[tuple[object, ...], float] = {}
    seconds = 0.0
    for job in jobs:
        cell, train = job.cell, job.cell.train
        training = job.n_trained > 0
        images = job.n_trained or job.n_sampled * cell.score_evaluations
        if not images:
            continue
        most = train.batch_size if training else context.sampling_batch
        n = most
        if context.device == "cpu":
            n = max(1, min(most, int(_FLOPS_OF_A_CALL / cell_forward_flops(cell))))
        key = (
            *(training, n, train.architecture, train.width, train.conditional, train.objective),
            *(cell.data.channels, cell.data.image_size),
        )
        if key not in timed:
            step = _training_step if training else _evaluation
            timed[key] = _seconds(step(cell, n, context.device), context.device) / n
        seconds += timed[key] * images
    return seconds / 3600


def _network(cell: Cell, device: str) -> ScoreNetwork:
    train = cell.train
    network = ScoreNetwork(
        train.architecture,
        cell.ladder.sigmas if not train.conditional else torch.ones(train.n_levels),
        conditional=train.conditional,
        channels=cell.data.channels,
        width=train.width,
        conditioning=train.conditioning,
    )
    return network.to(device)


def _images(cell: Cell, n: int, device: str) -> torch.Tensor:
    size = cell.data.image_size
    return torch.rand(n, cell.data.channels, size, size, device=device)


def _training_step(cell: Cell, n: int, device: str) -> Callable[[], None]:
    network, x = _network(cell, device), _images(cell, n, device)
    level = torch.zeros(n, dtype=torch.int64, device=device)
    train = cell.train
    projection = torch.randn_like(x) if needs_projection(train.objective) else None

    def step() -> None:
        loss = annealed_score_matching_loss(
            network,
            x,
            sigmas=torch.ones(train.n_levels, device=device),
            noise_index=level,
            noise=torch.randn_like(x),
            objective=train.objective,
            projection=projection,
            epsilon=train.fd_epsilon,
        )
        loss.mean().backward()
        network.zero_grad(set_to_none=True)

    return step


def _evaluation(cell: Cell, n: int, device: str) -> Callable[[], None]:
    network, x = _network(cell, device).eval(), _images(cell, n, device)
    level = torch.zeros(n, dtype=torch.int64, device=device)

    @torch.no_grad()
    def step() -> None:
        network(x, level)

    return step


def _seconds(step: Callable[[], None], device: str) -> float:
    def timed() -> float:
        began = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    # The fastest: what else the machine does now it need not do later.
    return min(timed() for _ in range(_CALLS))
