"""Sample dumps for human evaluation (HYPE, Zhou et al. 2019): numbered PNGs and a manifest."""

import hashlib
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ablations.pipeline.cell import Cell, cell_file_name
from scorekit.files import CorruptFile, read_sealed_json, sha256_file, write_sealed_json

_KINDS = ("fake", "real")
_log = logging.getLogger("scorekit")


def dump_name(cell: Cell, *, denoise: bool) -> str:
    """Return the dump's folder name, which :mod:`ablations.hype` takes, another for each dump."""
    return f"{cell_file_name(cell)}-{'denoised' if denoise else 'not-denoised'}"


def dump_exists(directory: Path, cell: Cell, *, denoise: bool) -> bool:
    """Return whether a cell's dump is there; it appears whole, so its manifest tells."""
    return (directory / dump_name(cell, denoise=denoise) / "manifest.json").exists()


def dump_is_whole(directory: Path, cell: Cell, *, denoise: bool) -> bool:
    """Return whether a cell's dump is there and every image what its manifest says.

    Damage is named in the log; :func:`dump_samples` then writes the dump again.
    """
    folder = directory / dump_name(cell, denoise=denoise)
    try:
        manifest = read_sealed_json(folder / "manifest.json")
        for entry in manifest["images"]:
            for kind in _KINDS:
                path = folder / kind / entry["file"]
                if sha256_file(path) != entry[f"{kind}_sha256"]:
                    raise CorruptFile(path, "its checksum does not agree with the manifest")
    except (FileNotFoundError, CorruptFile, KeyError, TypeError) as error:
        if folder.exists():
            _log.warning("%s: damaged (%s); written again", folder, error)
        return False
    return True


def encode_png(image: np.ndarray) -> bytes:
    """Return a uint8 image (C, H, W) with 1 or 3 channels as PNG bytes."""
    pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def dump_samples(
    cell: Cell,
    *,
    denoise: bool,
    checkpoint: str,
    iteration: int,
    fake: np.ndarray,
    real: np.ndarray,
    directory: Path,
) -> Path:
    """Write ``directory/<cell>/{fake,real}/NNNNN.png`` and ``manifest.json``; return the folder.

    ``fake`` and ``real`` are uint8 (N, C, H, W); as many real images as samples, drawn without
    replacement by the cell's seed, are paired with them by number. The folder appears whole, and
    one that is there with the same manifest is left alone.
    """
    target = directory / dump_name(cell, denoise=denoise)
    n = min(len(fake), len(real))
    generator = np.random.Generator(np.random.Philox(key=cell.seed))
    chosen = generator.choice(len(real), size=n, replace=False)
    images: list[dict[str, Any]] = []
    pngs = {"fake": [encode_png(image) for image in fake[:n]]}
    pngs["real"] = [encode_png(real[j]) for j in chosen]
    for i, j in enumerate(chosen):
        digests = {f"{kind}_sha256": hashlib.sha256(pngs[kind][i]).hexdigest() for kind in _KINDS}
        images.append(
            {"file": f"{i:05d}.png", "sample_index": i, "real_train_index": int(j)} | digests
        )
    manifest = {
        "dataset": cell.data.name,
        "variant": cell.label,
        "techniques": list(cell.variant.techniques),
        "weights": cell.weights,
        "denoise": denoise,
        "seed": cell.seed,
        "iteration": iteration,
        "checkpoint_sha256": checkpoint,
        "training_stage": cell.train_stage().digest,
        "images": images,
    }
    # Compared as JSON, where tuples and lists are one.
    if dump_is_whole(directory, cell, denoise=denoise) and read_sealed_json(
        target / "manifest.json"
    ) == json.loads(json.dumps(manifest)):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for kind in _KINDS:
        (temporary / kind).mkdir(parents=True)
        for image, png in zip(images, pngs[kind], strict=True):
            (temporary / kind / image["file"]).write_bytes(png)
    write_sealed_json(temporary / "manifest.json", manifest)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    os.replace(temporary, target)
    return target
