"""Read the checkpoints that the authors of NCSN and NCSNv2 released.

Such a file is a list: model state (names prefixed "module.") and optimiser state, which is all that
the first NCSN saves; then epoch, step and, where the model was trained with EMA, a dict of the
averaged parameters without prefix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    states = read_released(path)
    if weights not in states:
        raise ReleasedCheckpointError(f"{path} has no EMA weights: load it with weights='raw'")
    network = _network_from_state(path, states[weights], sigma_begin, sigma_end, dtype)
    names = [name for name, _ in network.named_parameters()]
    averaged = states.get("averaged", {})
    if weights == "ema" and (lacking := [name for name in names if name not in averaged]):
        raise ReleasedCheckpointError(
            f"{path} has no whole EMA: its average lacks {len(lacking)} of {len(names)} "
            f"parameters, {lacking[0]} first; load it with weights='raw'"
        )
    return network


def read_released(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Return the states of a released checkpoint: "raw", and where it has an EMA "ema".

    "ema" has the buffers of "raw", the ladder among them, which are not averaged; "averaged" holds
    what the file's EMA does. Raises as :func:`load_released`.
    """
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
    raw = {name.removeprefix("module."): value for name, value in content[0].items()}
    if len(content) < 5 or not _is_state(content[4]):
        return {"raw": raw}
    return {"raw": raw, "ema": raw | content[4], "averaged": content[4]}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network's parameters tell of it; ``sigmas`` are those of the file, or None."""

    architecture: str
    width: int
    channels: int
    conditional: bool
    n_levels: int
    sigmas: Tensor | None


def shape_of(path: str | Path, state: Mapping[str, Tensor]) -> Shape:
    """Return what names and shapes tell; ReleasedCheckpointError for another network's."""
    try:
        begin = state["begin_conv.weight"]
        width, channels = begin.shape[:2]
        stages = {name.split(".")[0] for name in state if name.startswith("res")}
        architecture = next(
            name
            for name, table in PAPER_ARCHITECTURES.items()
            if {stage.name for stage in table.stages} == stages
        )
        conditional = "normalizer.embed.weight" in state
        sigmas = None if conditional else state["sigmas"].to(torch.float32)
        levels = state["normalizer.embed.weight"] if sigmas is None else sigmas
    except (KeyError, StopIteration, AttributeError, ValueError) as error:
        raise ReleasedCheckpointError(
            f"{path} does not hold one of the networks of Tables 2 and 3 ({error!r})"
        ) from error
    return Shape(
        architecture=architecture,
        width=width,
        channels=channels,
        conditional=conditional,
        n_levels=len(levels),
        sigmas=sigmas,
    )


def _network_from_state(
    path: Path,
    state: Mapping[str, Tensor],
    sigma_begin: float,
    sigma_end: float,
    dtype: torch.dtype,
) -> ScoreNetwork:
    shape = shape_of(path, state)
    sigmas = shape.sigmas
    if sigmas is None:
        sigmas = geometric_sigmas(sigma_begin, sigma_end, shape.n_levels)
    try:
        network = ScoreNetwork(
            shape.architecture,
            sigmas,
            conditional=shape.conditional,
            channels=shape.channels,
            width=shape.width,
        )
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ReleasedCheckpointError(
            f"{path} does not fit {shape.architecture!r}: {error}"
        ) from error
    return network.to(dtype).eval()
