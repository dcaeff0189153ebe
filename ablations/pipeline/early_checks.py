"""What would otherwise be found after days of training: refused in one line, before any work."""

import argparse
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import torch

from ablations.engine.context import Context
from ablations.pipeline.jobs import CellJob
from scorekit.data.store import open_store
from scorekit.files import CorruptFile
from scorekit.metrics.frechet import check_features
from scorekit.models.score_network import ARCHITECTURES, OwnArchitecture
from scorekit.training.loss import ScoreLoss
from scorekit.training.networks import build_network, check_trainable

#: The longest path below an output folder that a run writes, with room to spare.
_LONGEST_BELOW = 320
_PATH_MAX = 4096  # bytes (Linux); elsewhere less is refused by the system at once


def check_texts(args: argparse.Namespace) -> None:
    """Raise ValueError for a value on the command line that cannot be shown on a page as it is."""
    for key, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | Path):
                check_text(f"--{key.replace('_', '-')}", str(text))


def check_text(what: str, text: str) -> None:
    """Raise ValueError for bytes that are not UTF-8, and for control characters."""
    for character in text:
        if (category := unicodedata.category(character)) in ("Cs", "Cc"):
            wrong = "is not UTF-8" if category == "Cs" else "holds a control character"
            raise ValueError(
                f"{what} {text!r} {wrong}, so that no table could show it; rename it, or give a "
                "link to it of another name"
            )


def check_out(out: Path) -> None:
    """Raise ValueError for an output folder whose path is too long for what will be below it."""
    check_text("--out", str(out))
    if len(os.fsencode(out)) + _LONGEST_BELOW > _PATH_MAX:
        raise ValueError(
            f"--out: its path has {len(os.fsencode(out))} bytes; at most "
            f"{_PATH_MAX - _LONGEST_BELOW} leave room for the files in it"
        )


def too_few_images(jobs: Iterable[CellJob]) -> list[str]:
    """Return a line for each split of the jobs' data that no distance can be taken of."""
    return [
        f"--datasets {data.name}: its {split} split has {n} image(s), and a distance needs a "
        "covariance, of at least 2; give it more images"
        for data in dict.fromkeys(job.cell.data for job in jobs)
        for split, n in (("train", data.n_train), ("test", data.n_test))
        if n < 2
    ]


def check_networks(jobs: Iterable[CellJob], context: Context) -> None:
    """Raise ValueError where a network of the user's own cannot be trained or sampled from.

    An image of zeros is passed through each that the jobs will use, on this machine's CPU.
    """
    cells = {job.cell.train_stage(): job.cell for job in jobs}
    for cell in cells.values():
        train, data = cell.train, cell.data
        if not isinstance(ARCHITECTURES[train.architecture], OwnArchitecture):
            continue
        image = torch.zeros(1, data.channels, data.image_size, data.image_size)
        try:
            network = build_network(train, data.channels)
            check_trainable(network)
            ScoreLoss(train, "cpu", augmented=True).check(network)
            with torch.no_grad():
                score = network(image, torch.zeros(1, dtype=torch.int64))
            if not isinstance(score, torch.Tensor) or score.shape != image.shape:
                what = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score)
                raise ValueError(f"its score is {what}; {tuple(image.shape)} is needed")
        except Exception as error:  # whatever a stranger's network does
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"architecture = {train.architecture!r} (width = {train.width}) fails on images of "
                f"{data.name}: {type(error).__name__}: {reason}"
            ) from error


def check_extractors(jobs: Iterable[CellJob], context: Context) -> None:
    """Raise ValueError where an extractor cannot take a data set's images, or has wrong weights.

    Two images are passed through each that the jobs will use, on this machine's CPU.
    """
    users = {job.cell.reference_stage(): job.cell.data for job in jobs}
    if not users:
        return
    # Imported here: torch-fidelity costs seconds that a finished grid has no use for.
    from scorekit.metrics.features import extract

    for data in users.values():
        try:
            images = open_store(context.data_root / data.store).train[:2]
            weights = context.extractor_weights
            check_features(extract(images, data.extractor, weights_path=weights).features)
        except (CorruptFile, ValueError) as error:
            raise ValueError(f"--datasets {data.name}: {error}") from error
