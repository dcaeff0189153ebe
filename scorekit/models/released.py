"""Read the checkpoints that the authors of NCSN and NCSNv2 released.

Such a file is a list: model state (names prefixed "module.") and optimiser state, which is all that
the first NCSN saves; then epoch, step and, where the model was trained with EMA, a dict of the
averaged parameters without prefix.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scorekit.models.score_network import PAPER_ARCHITECTURES, ScoreNetwork
from scorekit.techniques.noise_scales import geometric_sigmas


class ReleasedCheckpointError(ValueError):
    """A file that is not a released checkpoint, or that does not load safely."""


def load_released(
    path: str | Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    sigma_begin: float = 1.0,
    sigma_end: float = 0.01,
    dtype: torch.dtype = torch.float32,
) -> ScoreNetwork:
    """Return the network in a released checkpoint, in evaluation mode, on the CPU.

    Architecture, width, channels and number of noise scales are read from the parameters' names and
    shapes. The ladder is the file's own where it has one (NCSNv2); NCSN files carry none, and get
    the geometric one from ``sigma_begin`` to ``sigma_end``. The file is unpickled with
    ``weights_only=True``, so code in it is refused. Raises ReleasedCheckpointError with the
    file's name and the reason.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise  # says what is wrong by itself, and names the file
    except Exception as error:  # unpickling damaged or hostile bytes can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReleasedCheckpointError(f"{path} was refused: {reason}") from error
    if not isinstance(content, list) or len(content) < 2 or not _is_state(content[0]):
        raise ReleasedCheckpointError(
            f"{path} is not a released checkpoint: a list [model, optimiser], or "
            f"[model, optimiser, epoch, step, EMA], was expected, got {type(content).__name__}"
        )
    state = {name.removeprefix("module."): value for name, value in content[0].items()}
    averaged: dict[str, Tensor] = {}
    if weights == "ema":
        if len(content) < 5 or not _is_state(content[4]):
            raise ReleasedCheckpointError(f"{path} has no EMA weights: load it with weights='raw'")
        # Buffers, the ladder among them, are not averaged.
        averaged = content[4]
    network = _network_from_state(path, state | averaged, sigma_begin, sigma_end, dtype)
    if weights == "ema":
        names = [name for name, _ in network.named_parameters()]
        if lacking := [name for name in names if name not in averaged]:
            raise ReleasedCheckpointError(
                f"{path} has no whole EMA: its average lacks {len(lacking)} of {len(names)} "
                f"parameters, {lacking[0]} first; load it with weights='raw'"
            )
    return network


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _network_from_state(
    path: Path, state: dict[str, Any], sigma_begin: float, sigma_end: float, dtype: torch.dtype
) -> ScoreNetwork:
    try:
        begin: Tensor = state["begin_conv.weight"]
        width, channels = begin.shape[:2]
        stages = {name.split(".")[0] for name in state if name.startswith("res")}
        architecture = next(
            name
            for name, table in PAPER_ARCHITECTURES.items()
            if {stage.name for stage in table.stages} == stages
        )
        conditional = "normalizer.embed.weight" in state
        if conditional:
            n_levels = len(state["normalizer.embed.weight"])
            sigmas = geometric_sigmas(sigma_begin, sigma_end, n_levels)
        else:
            sigmas = state["sigmas"].to(torch.float32)
    except (KeyError, StopIteration, AttributeError, ValueError) as error:
        raise ReleasedCheckpointError(
            f"{path} does not hold one of the networks of Tables 2 and 3 ({error!r})"
        ) from error
    try:
        network = ScoreNetwork(
            architecture, sigmas, conditional=conditional, channels=channels, width=width
        )
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ReleasedCheckpointError(f"{path} does not fit {architecture!r}: {error}") from error
    return network.to(dtype).eval()
