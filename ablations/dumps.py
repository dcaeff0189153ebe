"""Sample dumps for human evaluation (HYPE, Zhou et al. 2019): numbered PNGs and a manifest."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ablations.cells import Cell
from scorekit.files import CorruptFile, read_json, write_json


def dump_name(cell: Cell, *, denoise: bool) -> str:
    """Return the dump's folder name."""
    suffix = "denoised" if denoise else "not-denoised"
    dataset = cell.data.name.replace(":", "-").replace("/", "-")
    return f"{dataset}-{cell.slug}-seed{cell.seed}-{suffix}"


def dump_exists(directory: Path, cell: Cell, *, denoise: bool) -> bool:
    """Return whether a cell's dump is there; it appears whole, so its manifest tells."""
    return (directory / dump_name(cell, denoise=denoise) / "manifest.json").exists()


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
    manifest = {
        "dataset": cell.data.name,
        "variant": cell.label,
        "techniques": list(cell.variant.techniques),
        "weights": cell.variant.weights,
        "denoise": denoise,
        "seed": cell.seed,
        "iteration": iteration,
        "checkpoint_sha256": checkpoint,
        "training_stage": cell.train_stage().digest,
        "images": [
            {"file": f"{i:05d}.png", "sample_index": i, "real_train_index": int(j)}
            for i, j in enumerate(chosen)
        ],
    }
    try:
        # Compared as JSON, where tuples and lists are one.
        if read_json(target / "manifest.json") == json.loads(json.dumps(manifest)):
            return target
    except (FileNotFoundError, CorruptFile):
        pass  # not there yet, or not whole: written anew below
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for kind in ("fake", "real"):
        (temporary / kind).mkdir(parents=True)
    for i, j in enumerate(chosen):
        (temporary / "fake" / f"{i:05d}.png").write_bytes(encode_png(fake[i]))
        (temporary / "real" / f"{i:05d}.png").write_bytes(encode_png(real[j]))
    write_json(temporary / "manifest.json", manifest)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    return target
