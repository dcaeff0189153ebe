"""A network from any file that holds one: released, a snapshot of a training, or exported."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scorekit.checkpoints.export import load_exported
from scorekit.checkpoints.tensors import load_tensors
from scorekit.files import CorruptFile, read_json
from scorekit.models.released import ReleasedCheckpointError, Shape, read_released, shape_of

States = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """What a file holds: the network's shape, and which ``weights``, "raw", "ema" or both.

    ``sigma_begin`` and ``sigma_end`` are those of its ladder, None where it carries none (NCSN);
    ``conditioning`` is the one it was trained with, None for the paper's. ``iteration`` is that of
    its training, where the file tells it.
    """

    sha256: str
    architecture: str
    width: int
    channels: int
    conditional: bool
    conditioning: str | None
    n_levels: int
    sigma_begin: float | None
    sigma_end: float | None
    weights: tuple[str, ...]
    iteration: int | None


def read_network_file(path: str | Path) -> tuple[NetworkFile, States]:
    """Return what a file holds, and its states by the name of their weights.

    Files of three kinds: what the authors of NCSN and NCSNv2 released, snapshots of a training, and
    what ``python -m scorekit.checkpoints export`` writes. None of them runs code. Raises ValueError
    for any other file, in one line that names it, and OSError where it cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    states, told = _states(path)
    shape = shape_of(path, next(iter(states.values())))
    begin, end = _ladder(shape, told)
    return NetworkFile(
        sha256=hashlib.sha256(data).hexdigest(),
        architecture=shape.architecture,
        width=shape.width,
        channels=shape.channels,
        conditional=shape.conditional,
        conditioning=told.get("conditioning"),
        n_levels=shape.n_levels,
        sigma_begin=begin,
        sigma_end=end,
        weights=tuple(states),
        iteration=told.get("iteration"),
    ), states


def _states(path: Path) -> tuple[States, Mapping[str, Any]]:
    """Return a file's states, and what stands in or beside it of its training."""
    if path.suffix == ".safetensors":
        try:
            state, metadata = load_exported(path)
        except CorruptFile as error:
            raise ValueError(str(error)) from error
        told = json.loads(metadata.get("settings", "{}"))
        if "iteration" in metadata:
            told["iteration"] = int(metadata["iteration"])
        return {metadata["weights"]: state}, told
    try:
        content = load_tensors(path)
    except CorruptFile as error:
        try:
            states = read_released(path)
        except ReleasedCheckpointError as released:
            raise ValueError(f"{released}; and as a snapshot of ours {error.reason}") from released
        return {key: states[key] for key in ("raw", "ema") if key in states}, {}
    found = {key: content[key] for key in ("raw", "ema") if isinstance(content.get(key), dict)}
    if not found:
        raise ValueError(f"{path} holds neither raw nor ema weights")
    settings = path.parent / "settings.json"
    told = dict(read_json(settings)) if settings.exists() else {}
    if match := re.fullmatch(r"\w+-(\d+)\.pt", path.name):
        told["iteration"] = int(match[1])
    return found, told


def _ladder(shape: Shape, told: Mapping[str, Any]) -> tuple[float | None, float | None]:
    if shape.sigmas is not None:
        # As they were written: the file has them in float32.
        begin, end = (float(f"{float(sigma):.6g}") for sigma in shape.sigmas[[0, -1]])
        return begin, end
    return told.get("sigma_begin"), told.get("sigma_end")
