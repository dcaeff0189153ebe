"""Networks as the trainer builds them, and as its snapshots keep them."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from scorekit.checkpoints.tensors import load_tensors
from scorekit.derivatives.model_checks import refuse_batch_statistics
from scorekit.files import CorruptFile
from scorekit.models.score_network import ScoreNetwork
from scorekit.training.settings import TrainSettings


def build_network(settings: TrainSettings, channels: int) -> ScoreNetwork:
    """Return the freshly initialised network of a run, a function of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ScoreNetwork(
            settings.architecture,
            settings.sigmas,
            conditional=settings.conditional,
            channels=channels,
            width=settings.width,
            conditioning=settings.conditioning,
        )


def check_trainable(network: nn.Module) -> None:
    """Raise ValueError for layers with which no run could be continued, or shared out, exactly."""
    refuse_batch_statistics(network, "training")
    for module in network.modules():
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"training continues exactly, and {type(module).__name__} draws masks that nothing "
                "tells: set p = 0 or remove it"
            )


def load_weights(network: nn.Module, path: str | Path, weights: str) -> None:
    """Give a network a snapshot's "raw" or "ema" weights, or those of one of its ema_profiles.

    CorruptFile where they are not its.
    """
    state = load_tensors(path, keys=(weights,))[weights]
    try:
        network.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise CorruptFile(path, f"does not fit the network ({error})") from error


def load_snapshot(
    path: str | Path, settings: TrainSettings, channels: int, weights: str
) -> ScoreNetwork:
    """Return a snapshot's network in evaluation mode, its weights as :func:`load_weights` says."""
    network = build_network(settings, channels)
    load_weights(network, path, weights)
    return network.eval().to(memory_format=torch.channels_last)
