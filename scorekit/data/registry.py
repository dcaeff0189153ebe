"""Data sets by name: `prepare` opens the store of one, and makes it where there is none."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from functools import partial
from pathlib import Path

from scorekit.data.embedded import EMBEDDED
from scorekit.data.image_splits import split_images
from scorekit.data.imagefolder import Square, list_images, listing_digest, read_images
from scorekit.data.paper_datasets import PAPER_DATASETS, check_image_size
from scorekit.data.preparation import make_store
from scorekit.data.store import (
    DataError,
    Dataset,
    KnownDataset,
    Request,
    Source,
    Splits,
    check_source,
    open_store,
)
from scorekit.files import CorruptFile, set_aside

log = logging.getLogger("scorekit")

IMAGE_RULES = 2  # which files are images, how they are split and how they are shown


def _imagefolder_source(request: Request) -> Source:
    """Any folder, tar or zip of images, RGB; see `scorekit.data.imagefolder`."""
    path = Path(os.path.abspath(os.path.expanduser(request.argument or "")))
    size, name = request.image_size, f"imagefolder:{path.name}"
    if size is None:
        raise DataError(f"{name}: image_size is not set; give it as --set image_size=32")
    check_image_size(size)
    # A changed rule gets a new number: stores made by the old one are not taken for new ones.
    key = f"{IMAGE_RULES}\0{path}\0{size}\0{request.seed}\0{listing_digest(path)}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def build() -> Splits:
        listed = list_images(path)
        names = list(listed)
        if len(names) < 3:
            raise DataError(
                f"imagefolder:{path}: has {len(names)} images; at least 2 to train "
                "and 1 to test are needed"
            )
        splits = split_images(names, request.seed, f"imagefolder:{path}")
        if len(splits["train"]) < 2:
            raise DataError(
                f"imagefolder:{path}: train/ has {len(splits['train'])} image; at "
                "least 2 are needed"
            )
        return Splits(
            shape=(3, size, size),
            n_train=len(splits["train"]),
            n_test=len(splits["test"]),
            images=partial(read_images, path, listed, splits, Square(size=size)),
        )

    basename = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:60]
    return Source(
        name=name, store=f"imagefolder-{basename}-{size}-{digest}", flip=True, build=build
    )


#: Every data set by name: add to them by :func:`register_dataset`.
KNOWN: dict[str, KnownDataset] = {}


def register_dataset(name: str, known: KnownDataset) -> None:
    """Give a data set a name; ValueError where it is taken, or its spelling is of another.

    Its stores' names are to change with what is in them: a store that is there is not made again.
    """
    if name in KNOWN:
        raise ValueError(f"dataset = {name!r} is registered already")
    if known.spelling not in (name, f"{name}:PATH", f"{name}[:PATH]"):
        raise ValueError(
            f"spelling = {known.spelling!r} of the data set {name!r}: {name}, {name}:PATH or "
            f"{name}[:PATH] is right"
        )
    KNOWN[name] = known


for _name, _known in {**PAPER_DATASETS, **EMBEDDED}.items():
    register_dataset(_name, _known)
register_dataset(
    "imagefolder",
    KnownDataset(
        source=_imagefolder_source,
        spelling="imagefolder:PATH",
        about="any folder, tar or zip of images",
    ),
)


def known_dataset(name: str) -> KnownDataset:
    """Return what is known of "name" or "name:PATH"; DataError where unknown or misspelt."""
    base, colon, argument = name.partition(":")
    if base not in KNOWN:
        spellings = ", ".join(sorted(known.spelling for known in KNOWN.values()))
        raise DataError(f"dataset={name}: unknown; known are {spellings}")
    known = KNOWN[base]
    wrong = {"": bool(colon), ":PATH": not argument, "[:PATH]": bool(colon) and not argument}
    if wrong[known.spelling.removeprefix(base)]:
        raise DataError(f"dataset={name}: write {known.spelling}")
    return known


def prepare(
    name: str,
    root: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> Dataset:
    """Open the store of data set `name` under `root`, making it first where there is none.

    For the paper's data sets, "name:PATH" says where they are to be made from (without it:
    `root`/raw/name); with a PATH, a store made from something else is refused. `image_size` is for
    image folders, CelebA, LSUN and FFHQ (4..1024) and must otherwise agree with the data; `seed`
    draws the test split where the data have none. `workers` and `skip_corrupt` are those of
    `make_store`. A damaged store is set aside with a warning and made again. Raises DataError for
    bad input.
    """
    _, _, argument = name.partition(":")
    root = Path(root)
    if seed < 0:
        raise DataError(f"seed={seed}: a whole number from 0 is right")
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers}: a whole number from 1 is right")
    request = Request(argument=argument or None, image_size=image_size, seed=seed, root=root)
    source = known_dataset(name).source(request)
    root.mkdir(parents=True, exist_ok=True)
    store = root / source.store
    for _ in range(3):  # another process may make, or set aside, the store between two of our steps
        if not os.path.lexists(store):
            make_store(source, store, workers=workers, skip_corrupt=skip_corrupt)
        try:
            dataset = open_store(store)
            if argument:
                check_source(store, source)
            return dataset
        except CorruptFile as error:
            try:
                aside = set_aside(store)
            except FileNotFoundError:
                continue  # another process was faster
            log.warning("data store damaged (%s): set aside as %s, made again", error, aside.name)
    raise DataError(f"dataset={name}: {store} was damaged three times in a row; see the log")
