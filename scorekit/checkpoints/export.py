"""A training run's newest checkpoint as small files that can be moved, and back.

An export is a directory of safetensors shards of a bounded size, named by their content, and
`index.json`: iteration, dtype, the SHA-256 of each shard, and how the checkpoint is put together
from them. What has not changed keeps its shards' names, so that a copying tool moves only the rest.
Reading one executes nothing. The separate copy of the best checkpoint is not carried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from scorekit.checkpoints.store import CheckpointStore, numbered_files, snapshot_path
from scorekit.checkpoints.tensors import load_tensors, save_tensors
from scorekit.files import CorruptFile, read_json, write_bytes, write_json
from scorekit.training.settings import check_settings, trajectory_digest

log = logging.getLogger("scorekit")

__all__ = ["DTYPES", "INDEX", "MIN_SHARD_BYTES", "export_checkpoint", "import_checkpoint"]

INDEX = "index.json"
FORMAT = "scorekit checkpoint export 1"
DTYPES = ("float32", "bfloat16")
MIN_SHARD_BYTES = 2**12
_OVERHEAD_BYTES = 128  # of a tensor in the header beside its name; of the header itself
_ROUNDED = (
    "weights and moments are rounded to bfloat16: training that continues from here is no longer "
    "the undisturbed run"
)
# What the types of a checkpoint's tensors are called; others are refused.
_TORCH = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8)
}
# What decoding an index that somebody altered can raise.
_MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,  # torch's, and RecursionError
    safetensors.SafetensorError,
)


def export_checkpoint(
    directory: str | Path,
    out: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    shard_bytes: int = 15 * 2**20,
    snapshots_after: int = 0,
) -> int:
    """Write the newest intact checkpoint of a training directory to `out`; return its iteration.

    Also the snapshots before it, without which training would begin again before the first that is
    missing; those up to iteration `snapshots_after` are left out: they must be where the export
    goes. No shard is larger than `shard_bytes`. Float32 is exact; with bfloat16 float32 weights,
    averages and Adam's moments are rounded, noise scales, step counts and losses are not. The index
    is written last, then shards of an earlier export in `out` are removed. Raises ValueError for a
    setting out of range and where there is no checkpoint, CorruptFile for a damaged snapshot.
    """
    directory, out = Path(directory), Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: {' or '.join(DTYPES)} is right")
    if shard_bytes < MIN_SHARD_BYTES:
        raise ValueError(f"shard_bytes={shard_bytes}: at least {MIN_SHARD_BYTES} is right")
    state = CheckpointStore(directory).load_last(keys=("iteration",))
    if state is None:
        raise ValueError(f"{directory}: holds no intact checkpoint-<iteration>.pt to export")
    iteration = state["iteration"]
    # That of the checkpoint's own iteration is made again from the checkpoint.
    earlier = [(i, path) for i, path in numbered_files(directory, "snapshot") if i < iteration]
    out.mkdir(parents=True, exist_ok=True)
    writer = _Writer(out, getattr(torch, dtype), shard_bytes)
    index = {
        "format": FORMAT,
        "iteration": iteration,
        "dtype": dtype,
        "note": _ROUNDED if dtype == "bfloat16" else "exact",
        "training": directory.resolve().name,
        "checkpoint": writer.add(state),
        "snapshots": [
            {
                "iteration": i,
                "content": writer.add(load_tensors(path)) if i > snapshots_after else None,
            }
            for i, path in earlier
        ],
        "shards": writer.shards,
    }
    write_json(out / INDEX, index | {"sha256": _digest(index)})
    for path in out.glob("shard-*.safetensors"):
        if path.name not in writer.shards:
            path.unlink()
    return iteration


def import_checkpoint(source: str | Path, directory: str | Path) -> int:
    """Check an export whole, then restore it in a training directory; return its iteration.

    Training there continues from it; snapshots that are there already are kept, and their shards
    not looked at. Raises CorruptFile naming the shard or index that is absent, truncated or
    altered, and ValueError where the directory has a checkpoint as new, is for other settings (its
    settings.json; training there refuses it, too) or lacks a snapshot that the export leaves out;
    then nothing is written.
    """
    source, directory = Path(source), Path(directory)
    reader = _Reader(source)
    iteration = reader.iteration
    present = CheckpointStore(directory).last_iteration()
    if present >= iteration:
        raise ValueError(
            f"{directory}: has a checkpoint of iteration {present}; the export is of {iteration}"
        )
    wanted = [
        (i, content) for i, content in reader.snapshots if not _intact(snapshot_path(directory, i))
    ]
    for i, content in wanted:
        if content is None:
            raise ValueError(
                f"{snapshot_path(directory, i)}: is neither there nor in {source}; export with "
                f"--snapshots-after {i - 1} or less"
            )
    # All of it once, to know that it is whole, and again to write: it need not fit into memory.
    for _, content in wanted:
        reader.decode(content)
    state = reader.decode(reader.checkpoint)
    if state.get("iteration") != iteration:
        raise CorruptFile(reader.path, f"its checkpoint is not of iteration {iteration}")
    if (wanted_digest := _digest_of(directory)) is not None:
        check_settings(state, wanted_digest, source)
    if directory.resolve().name != reader.training:
        log.warning(
            "%s: the export is of a training directory named %r; in a grid's output another name "
            "means other settings",
            directory,
            reader.training,
        )
    directory.mkdir(parents=True, exist_ok=True)
    for i, content in wanted:
        save_tensors(snapshot_path(directory, i), reader.decode(content))
    CheckpointStore(directory).save(iteration, reader.decode(reader.checkpoint))
    return iteration


def _digest_of(directory: Path) -> str | None:
    """Return the digest of the settings that a grid's training directory is for, if it says so."""
    try:
        record = read_json(directory / "settings.json")
    except FileNotFoundError:
        return None
    if not isinstance(record, dict):
        raise CorruptFile(directory / "settings.json", "is no JSON object")
    return trajectory_digest({key: value for key, value in record.items() if key != "kind"})


def _intact(path: Path) -> bool:
    try:
        load_tensors(path)
    except (FileNotFoundError, CorruptFile):
        return False
    return True


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.channels_last)


class _Writer:
    """Nested values to JSON, their tensors to shards: each value begins a new one."""

    def __init__(self, out: Path, dtype: torch.dtype, shard_bytes: int) -> None:
        self.out, self.dtype, self.shard_bytes = out, dtype, shard_bytes
        self.shards: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, torch.Tensor] = {}
        self._places: list[
            dict[str, Any]
        ] = []  # of the pending tensors, until the shard has a name
        self._size = 0

    def add(self, value: Any) -> Any:
        node = self._encode(value, ())
        self._flush()
        return node

    def _encode(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": self._put(value, path)}
        if isinstance(value, dict):
            pairs = [[key, self._encode(item, (*path, key))] for key, item in value.items()]
            return {"dict": pairs}
        if isinstance(value, list | tuple):
            items = [self._encode(item, (*path, i)) for i, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}  # JSON has none
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{'/'.join(map(str, path))}: a {type(value).__name__} cannot be exported")

    def _put(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> dict[str, Any]:
        name, dtype = "/".join(map(str, path)), str(tensor.dtype).removeprefix("torch.")
        if dtype not in _TORCH:
            raise TypeError(f"{name}: {dtype} cannot be exported; {', '.join(_TORCH)} can")
        flat = tensor.detach().cpu().contiguous().flatten()
        # Not step counts (scalars) and the ladder: rounded, they would be others.
        if tensor.dtype == torch.float32 and tensor.ndim and path[-1] != "sigmas":
            flat = flat.to(self.dtype)
        parts: list[dict[str, Any]] = []
        start = 0
        while start < len(flat):
            key = f"{name}@{start}"
            overhead = _OVERHEAD_BYTES + 2 * len(key.encode())
            room = (self.shard_bytes - self._size - overhead) // flat.element_size()
            if room < 1 and self._pending:
                self._flush()
                continue
            piece = flat[start : start + max(room, 1)]
            part = {"key": key}
            self._pending[key] = piece
            self._places.append(part)
            parts.append(part)
            self._size += overhead + piece.nbytes
            start += len(piece)
        # Fused Adam goes through moments in the order of their memory, which must be the weights'.
        last = tensor.ndim == 4 and tensor.stride() == _channels_last(tensor).stride()
        place = {"dtype": dtype, "shape": list(tensor.shape), "parts": parts}
        return place | {"channels_last": last}

    def _flush(self) -> None:
        if self._pending:
            data = safetensors.torch.save(self._pending)
            digest = hashlib.sha256(data).hexdigest()
            name = f"shard-{digest[:16]}.safetensors"
            write_bytes(self.out / name, data)
            self.shards[name] = {"sha256": digest, "bytes": len(data)}
            for part in self._places:
                part["shard"] = name
        self._pending, self._places, self._size = {}, [], _OVERHEAD_BYTES


class _Reader:
    """An export's index, checked, and values decoded from it and from shards that are checked."""

    def __init__(self, source: Path) -> None:
        self.source, self.path = source, source / INDEX
        try:
            index = read_json(self.path)
            stated = index.pop("sha256")
            if stated != _digest(index):
                raise CorruptFile(self.path, "its checksum does not agree with its content")
            if index["format"] != FORMAT:
                raise CorruptFile(self.path, f"is {index['format']!r}; {FORMAT!r} is right")
            self.shards: dict[str, dict[str, Any]] = dict(index["shards"])
            self.iteration, self.checkpoint = int(index["iteration"]), index["checkpoint"]
            self.training = str(index["training"])
            self.snapshots = [(int(s["iteration"]), s["content"]) for s in index["snapshots"]]
        except FileNotFoundError:
            raise CorruptFile(self.path, "is not there: no export, or one cut short") from None
        except CorruptFile:
            raise
        except _MALFORMED as error:
            raise self._malformed(error) from error
        self._shard = lru_cache(maxsize=1)(self._read_shard)

    def _malformed(self, error: BaseException) -> CorruptFile:
        return CorruptFile(self.path, f"is no index of an export ({type(error).__name__}: {error})")

    def decode(self, node: Any) -> dict[str, Any]:
        try:
            value = self._decode(node)
        except CorruptFile:
            raise
        except _MALFORMED as error:
            raise self._malformed(error) from error
        if not isinstance(value, dict):
            raise CorruptFile(self.path, f"holds a {type(value).__name__} for a checkpoint")
        return value

    def _decode(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, value),) = node.items()
        if kind == "tensor":
            return self._tensor(**value)
        decoders: dict[str, Callable[[Any], Any]] = {
            "dict": lambda pairs: {key: self._decode(item) for key, item in pairs},
            "list": lambda items: [self._decode(item) for item in items],
            "tuple": lambda items: tuple(self._decode(item) for item in items),
            "float": float,
        }
        return decoders[kind](value)

    def _tensor(
        self, dtype: str, shape: list[int], parts: list[dict[str, str]], channels_last: bool
    ) -> torch.Tensor:
        pieces = [self._shard(part["shard"])[part["key"]] for part in parts]
        flat = torch.cat(pieces) if pieces else torch.empty(0)
        tensor = flat.reshape(shape).to(_TORCH[dtype])
        return _channels_last(tensor) if channels_last else tensor

    def _read_shard(self, name: str) -> dict[str, torch.Tensor]:
        path, stated = self.source / name, self.shards[name]
        if not re.fullmatch(r"shard-[0-9a-f]{16}\.safetensors", name):
            raise CorruptFile(self.path, f"names {name!r} as a shard")
        if not path.is_file():
            raise CorruptFile(path, "the shard is missing")
        data = path.read_bytes()
        if len(data) != stated["bytes"]:
            raise CorruptFile(path, f"holds {len(data)} bytes; {stated['bytes']} are right")
        if hashlib.sha256(data).hexdigest() != stated["sha256"]:
            raise CorruptFile(path, "its checksum does not agree with the index")
        return safetensors.torch.load(data)


def main(argv: list[str] | None = None) -> int:
    """Command line of `python -m scorekit.checkpoints`; returns 0, or 2 on an error (one line)."""
    parser = argparse.ArgumentParser(prog="python -m scorekit.checkpoints", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    export = command.add_parser("export", help="write the newest intact checkpoint as small files")
    export.add_argument("train_dir", type=Path, help="of a run: OUT/stages/train/<digest>")
    export.add_argument("out_dir", type=Path)
    export.add_argument(
        "--dtype", choices=DTYPES, default="float32", help=f"float32 is exact; bfloat16: {_ROUNDED}"
    )
    export.add_argument("--shard-mib", type=float, default=15, help="of a shard at most (15)")
    export.add_argument(
        "--snapshots-after",
        type=int,
        default=0,
        metavar="ITERATION",
        help="leave out the snapshots up to this iteration: they were moved before (0: none were)",
    )
    restore = command.add_parser("import", help="check an export and restore it")
    restore.add_argument("out_dir", type=Path)
    restore.add_argument("train_dir", type=Path)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "export":
            iteration = export_checkpoint(
                arguments.train_dir,
                arguments.out_dir,
                dtype=arguments.dtype,
                shard_bytes=int(arguments.shard_mib * 2**20),
                snapshots_after=arguments.snapshots_after,
            )
        else:
            iteration = import_checkpoint(arguments.out_dir, arguments.train_dir)
    except (ValueError, CorruptFile, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    where = arguments.out_dir if arguments.command == "export" else arguments.train_dir
    print(f"iteration {iteration}: {arguments.command}ed to {where}")
    return 0
