"""Which data the trials of the grid ``finite-difference`` train on, and what is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scorekit.data.embedded import digits_split
from scorekit.data.registry import known_dataset, prepare
from scorekit.data.store import Request
from scorekit.data.tabular import TABLES, load_table
from scorekit.files import sha256_file

#: Images for flows and auto-encoders; the first are embedded, the others looked for.
IMAGE_SETS = ("digits", "mnist")
Skipped = list[dict[str, str]]


def uci_files(data_root: Path) -> tuple[dict[str, str], Skipped]:
    """Return the checksum of each UCI table's file, and what is skipped, why, where there is none.

    Raises DataError, in one line, for a file that is not as it should be.
    """
    files, skipped = {}, []
    for name, known in TABLES.items():
        paths = [root / known.file for root in (data_root, data_root / "uci")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            reason = (
                f"{known.file} is not in {data_root} or its folder uci; it is the data set "
                f"“{known.source}” of the UCI Machine Learning Repository, and --data-root says "
                "where it is"
            )
            skipped.append({"part": "epsilon", "name": f"dkef/{name}", "reason": reason})
        else:
            load_table(name, data_root)
            files[name] = sha256_file(path)
    return files, skipped


def image_sets(data_root: Path) -> tuple[dict[str, str | None], str | None]:
    """Return the fingerprint of each set of images, None of embedded ones, and why one is absent.

    MNIST is taken where its store, or the files that it is made of, lie below ``data_root``. Raises
    DataError, in one line, where they are not as they should be.
    """
    sets: dict[str, str | None] = {"digits": None}
    request = Request(argument=None, image_size=None, seed=0, root=data_root)
    store = known_dataset("mnist").source(request).store
    raw = data_root / "raw" / "mnist"
    if not (data_root / store).exists() and not raw.exists():
        return sets, (
            f"MNIST is not prepared in {data_root}; put its files into {raw}, or run "
            f"python -m scorekit.data prepare mnist --root {data_root} --download"
        )
    sets["mnist"] = prepare("mnist", data_root).fingerprint
    return sets, None


def load_images(name: str, data_root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and the test images of a set, uint8 (N, 1, H, W)."""
    if name == "digits":
        return digits_split("train")[0], digits_split("test")[0]
    dataset = prepare(name, data_root)
    return np.asarray(dataset.train), np.asarray(dataset.test)
