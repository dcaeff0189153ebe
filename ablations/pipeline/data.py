"""What a grid knows of its data."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ablations.engine.context import Context
from ablations.engine.plugins import plugin_digest
from scorekit.data.registry import prepare
from scorekit.data.store import Dataset, check, open_store
from scorekit.files import (
    READ_ONLY,
    CorruptFile,
    read_sealed_json,
    set_aside,
    write_sealed_json,
)
from scorekit.metrics.spaces import (
    DINOV2,
    INCEPTION,
    WEIGHTS_OPTIONS,
    default_extractor,
    extractor_digest,
    known_extractors,
)
from scorekit.techniques.noise_scales import initial_noise_scale

_log = logging.getLogger("scorekit")


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What settings are derived from: a dataset's identity and shape, and Technique 1's sigma_1."""

    name: str
    store: str  # folder of the prepared images below the data root
    fingerprint: str
    channels: int
    image_size: int
    n_train: int
    n_test: int
    flip: bool
    max_distance: float  # sigma_1 of Technique 1
    extractor: str  # feature space of the Fréchet distance
    extractor_fingerprint: str

    @property
    def dim(self) -> int:
        """D: pixels times channels."""
        return self.channels * self.image_size**2


def open_dataset(context: Context, facts: DataFacts) -> Dataset:
    """Open a prepared dataset, every byte of which is checked once in a process.

    Raises CorruptFile where it is not the one that was planned, or damaged: then it is set
    aside, and the next launch prepares it again.
    """
    directory = context.data_root / facts.store
    dataset = open_store(directory)
    if dataset.fingerprint != facts.fingerprint:
        raise CorruptFile(directory, "its images changed since the grid was planned")
    try:
        _check_bytes(directory, dataset.fingerprint)
    except CorruptFile as error:
        aside = set_aside(directory).name
        reason = f"{error.reason}; the data are set aside as {aside}, and prepared again"
        raise CorruptFile(error.path, reason) from error
    return dataset


@lru_cache(maxsize=64)
def _check_bytes(directory: Path, fingerprint: str) -> None:
    check(directory)


def data_facts(
    spec: str,
    data_root: Path,
    *,
    image_size: int | None,
    inception_weights: Path | None,
    extractor: str | None = None,
    dinov2_weights: Path | None = None,
) -> DataFacts:
    """Prepare a dataset where needed and return what settings are derived from.

    ``spec`` is a name, or a name and a path (``imagefolder:PATH``). ``extractor`` is the feature
    space, by default that whose weights are given, else the data set's own. The maximum
    pairwise distance is kept beside the images, under their fingerprint. Raises ValueError for bad
    data or weights.
    """
    dataset = prepare(spec, data_root, image_size=image_size)
    assert dataset.directory is not None
    weights = {INCEPTION: inception_weights, DINOV2: dinov2_weights}
    given = [space for space, path in weights.items() if path is not None]
    for space in given:
        if extractor not in (None, space):
            raise ValueError(
                f"{WEIGHTS_OPTIONS[space][0]}: --extractor {extractor} has no use for them; "
                "leave one out"
            )
    if extractor is None and DINOV2 in given:
        extractor = DINOV2
    if extractor is None:
        extractor = default_extractor(dataset.name, dataset.channels, inception_weights)
    elif extractor not in (known := known_extractors()):
        raise ValueError(f"--extractor {extractor}: unknown; known are {', '.join(known)}")
    path = data_root / f"max-distance-{dataset.fingerprint[:16]}.json"
    distance = _kept_distance(path)
    if distance is None:
        distance = initial_noise_scale(np.asarray(dataset.train))
        try:
            write_sealed_json(path, {"max_distance": distance})
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            _log.warning("%s is read-only: the distance is computed at each start", data_root)
    return DataFacts(
        name=dataset.name,
        store=str(dataset.directory.relative_to(data_root)),
        fingerprint=dataset.fingerprint,
        channels=dataset.channels,
        image_size=dataset.image_size,
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        flip=dataset.flip,
        max_distance=distance,
        extractor=extractor,
        extractor_fingerprint=extractor_fingerprint(extractor, weights.get(extractor)),
    )


def extractor_fingerprint(extractor: str, weights: Path | None) -> str:
    """Return the digest of an extractor's weights, or of the plugin that registered it."""
    return plugin_digest("extractor", extractor) or extractor_digest(extractor, weights)


def with_plugin_extractor(data: DataFacts) -> DataFacts:
    """Return the facts with what the plugin of their extractor, if it is of one, is now."""
    digest = plugin_digest("extractor", data.extractor)
    return data if digest is None else replace(data, extractor_fingerprint=digest)


def _kept_distance(path: Path) -> float | None:
    """Return the maximum pairwise distance in a file, or None; a damaged file is set aside."""
    try:
        distance = read_sealed_json(path).get("max_distance")
        if not isinstance(distance, float) or not 0 < distance < float("inf"):
            raise CorruptFile(path, f"max_distance is {distance!r}; a positive number is right")
        return distance
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        _log.warning("%s; set aside as %s, and computed again", error, set_aside(path).name)
        return None


@contextmanager
def planning_root(data_root: Path, *, dry_run: bool) -> Iterator[Path]:
    """Give the folder where data are prepared for planning: a dry run writes nothing there.

    It sees what is prepared already, and prepares what is not in a temporary folder.
    """
    if not dry_run:
        yield data_root
        return
    with TemporaryDirectory(prefix="scorekit-dry-run-") as folder:
        root = Path(folder).resolve()
        for path in data_root.iterdir() if data_root.is_dir() else ():
            if not path.name.startswith(".") and path.suffix != ".partial":
                (root / path.name).symlink_to(path)
        yield root
