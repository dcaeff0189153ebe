"""Which images of a folder or an archive are for training and which for testing, by their names."""

from __future__ import annotations

import logging
import re
from pathlib import PurePosixPath

import numpy as np

from scorekit.data.store import DataError

log = logging.getLogger("scorekit")

__all__ = ["draw_test", "split_folders", "split_images", "split_of"]

MAX_TEST_IMAGES = 10_000
KINDS = {
    "training": "train",
    "train": "train",
    "testing": "test",
    "test": "test",
    "validation": "val",
    "valid": "val",
    "val": "val",
}
# "train2017" is beside "val2017" what "train" is beside "val".
_WORD = re.compile(f"(.*?)({'|'.join(KINDS)})(.*)", re.IGNORECASE | re.DOTALL)
_Place = tuple[tuple[str, ...], str, str]  # folders above, what precedes the word, what follows it


def split_folders(names: list[str], shown: str = "images") -> dict[str, list[str]] | None:
    """Return the names in folders called train and test that stand beside each other.

    At any depth, in any case, with the same additions to both names ("train_hr", "test_hr"), and
    more than one pair of them; where there is no test, a val or validation is the test split. What
    is outside is left out with a warning that begins with `shown`. None where there are no such
    folders; DataError where some of the names are in a test folder that has no train beside it.
    """
    found: dict[_Place, set[str]] = {}
    for name in names:
        for place, kind in _places(name):
            found.setdefault(place, set()).add(kind)
    held_out = {
        place: "test" if "test" in kinds else "val"
        for place, kinds in found.items()
        if "train" in kinds and len(kinds) > 1
    }
    if not held_out:
        _refuse_test_alone(names, shown)
        return None
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        for place, kind in _places(name):
            if place in held_out:
                if kind in ("train", held_out[place]):
                    splits["train" if kind == "train" else "test"].append(name)
                break
    if "test" not in held_out.values():
        log.warning("%s: has no test/ beside train/: validation images are the test split", shown)
    if left_out := len(names) - sum(map(len, splits.values())):
        log.warning("%s: %d images outside train/ and test/ are left out", shown, left_out)
    return splits


def split_of(name: str) -> str | None:
    """Return "train" or "test" where a folder of the name is called so ("val" is "test"), or None.

    A folder called exactly so, in any case, the outermost of them.
    """
    for folder in PurePosixPath(name).parts[:-1]:
        if kind := KINDS.get(folder.lower()):
            return "train" if kind == "train" else "test"
    return None


def _places(name: str) -> list[tuple[_Place, str]]:
    folders = PurePosixPath(name).parts[:-1]
    return [
        ((folders[:i], match[1].lower(), match[3].lower()), KINDS[match[2].lower()])
        for i, folder in enumerate(folders)
        if (match := _WORD.fullmatch(folder))
    ]


def _refuse_test_alone(names: list[str], shown: str) -> None:
    alone = [name for name in names if split_of(name) == "test"]
    if 0 < len(alone) < len(names):
        raise DataError(
            f"{shown}: {len(alone)} of {len(names)} images are in test folders ({alone[0]}), with "
            "no train folder beside; train/ and test/ in one folder are right, or other names"
        )


def draw_test(names: list[str], n_test: int, seed: int) -> dict[str, list[str]]:
    """Split names into {"train": [...], "test": [...]}, each in their order; the test is drawn."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    chosen = set(order[:n_test].tolist())
    return {
        "train": [name for i, name in enumerate(names) if i not in chosen],
        "test": [name for i, name in enumerate(names) if i in chosen],
    }


def split_images(names: list[str], seed: int, shown: str = "images") -> dict[str, list[str]]:
    """Split sorted image names into {"train": [...], "test": [...]}, each sorted.

    By `split_folders` where there are such; otherwise a tenth (at least 1, at most 10,000), drawn
    with `seed`, is the test split.
    """
    n_test = min(MAX_TEST_IMAGES, max(1, len(names) // 10))
    return split_folders(names, shown) or draw_test(names, n_test, seed)
