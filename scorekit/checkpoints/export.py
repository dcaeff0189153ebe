"""A snapshot's weights as one safetensors file, which other programs read and nothing in it runs.

Its metadata are "format"; "weights", raw or ema; "iteration", where the snapshot's name tells it;
and "settings", JSON, where the snapshot lies beside the settings.json of its run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, get_args

import safetensors
import safetensors.torch
from torch import Tensor

from scorekit.checkpoints.tensors import load_tensors
from scorekit.files import CorruptFile, read_json, write_file

Weights = Literal["raw", "ema"]
FORMAT = "scorekit weights 1"


def export_snapshot(snapshot: str | Path, out: str | Path, *, weights: Weights = "ema") -> None:
    """Write a snapshot's raw weights, or their moving average, as the safetensors file `out`.

    Names, shapes and dtypes are those of the network's state_dict, and the values are exact. Raises
    ValueError for other `weights`, CorruptFile for a damaged snapshot or settings.json.
    """
    snapshot = Path(snapshot)
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights}: {' or '.join(get_args(Weights))} is right")
    state = load_tensors(snapshot, keys=(weights,))[weights]
    metadata = {"format": FORMAT, "weights": weights}
    if match := re.fullmatch(r"\w+-(\d+)\.pt", snapshot.name):
        metadata["iteration"] = str(int(match[1]))
    if (settings := snapshot.parent / "settings.json").exists():
        metadata["settings"] = json.dumps(read_json(settings), sort_keys=True)
    # Weights in channels-last order, which the format has no word for.
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_file(out, safetensors.torch.save(tensors, metadata))


def load_exported(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights and the metadata that :func:`export_snapshot` wrote.

    Raises CorruptFile for a file of another kind, and FileNotFoundError.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        weights = safetensors.torch.load(data)
        # The header: its length in 8 bytes, then JSON. safetensors reads it of files only.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise CorruptFile(path, f"is no safetensors file ({error})") from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise CorruptFile(path, f"is of format {metadata.get('format')!r}; {FORMAT!r} is right")
    return weights, metadata
