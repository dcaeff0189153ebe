"""Measuring samples: features once, then distances, qualities and neighbours from them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablations.engine.context import Context
from ablations.engine.stages import FOLLOWED, Stage
from ablations.pipeline.cell import MAX_REFERENCE, Cell
from ablations.pipeline.data import open_dataset
from ablations.pipeline.sampling import Drawing, Sampled
from ablations.pipeline.selection import sample_file
from scorekit.files import atomic_write, load_array, save_array
from scorekit.metrics.baselines import pixel_gaussian_samples, uniform_noise_samples
from scorekit.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from scorekit.metrics.manifold import manifold_metrics, precision_recall
from scorekit.metrics.neighbours import nearest_in_blocks
from scorekit.metrics.sample_quality import inception_score, kernel_distance
from scorekit.metrics.spaces import MetricError
from scorekit.metrics.uncertainty import distance_interval, extrapolate_distance
from scorekit.runtime.memory import ShrinkingBatch

if TYPE_CHECKING:
    from scorekit.metrics.features import Features


#: Images that pass through an extractor together: a block of which one rank takes the features.
EXTRACTION_BATCH = 256


class Measuring:
    """The feature, distance, quality and neighbour stages of one job.

    Several ranks share the extraction of features by blocks of images; rank 0 computes from them.
    """

    def __init__(self, context: Context, drawing: Drawing) -> None:
        self.context, self.drawing, self.store = context, drawing, context.store
        self.world = context.world
        self._batch = ShrinkingBatch(EXTRACTION_BATCH, "feature extraction")

    def distance(
        self, job: Sampled, iteration: int, *, denoise: bool, final: bool, before: int
    ) -> None:
        """Take the Fréchet distance of a snapshot's samples."""
        cell = job.cell
        stage = cell.distance_stage(iteration, denoise=denoise, final=final)

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            reference = self.statistics(cell, cell.reference_stage())
            offset = before - cell.n_selection if final else before
            features, _ = self.features(job, stage.needs[1:], offset)
            if not self.world.is_main:
                return FOLLOWED
            statistics = feature_statistics(features)
            result = {
                "distance": frechet_distance(statistics, reference),
                "n": statistics.n,
                "n_reference": reference.n,
            }
            if not math.isfinite(result["distance"]):
                raise ValueError(f"the distance of {cell.name} at {iteration} is not finite")
            return result, []

        self.store.run(stage, execute)

    def quality(self, job: Sampled, iteration: int, *, denoise: bool) -> None:
        """Take all other metrics of the final samples, and what n does to their distance."""
        cell = job.cell
        stage = cell.quality_stage(iteration, denoise=denoise)

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            reference = self.statistics(cell, cell.reference_stage())
            real = self.real_features(cell, cell.reference_stage())
            features, logits = self.features(job, stage.needs[1:], job.n_sampled)
            if not self.world.is_main:
                return FOLLOWED
            equal = real[: len(features)]
            measures: dict[str, Callable[[], Any]] = {
                "KID": lambda: kernel_distance(features, real, seed=cell.seed),
                "extrapolation": lambda: extrapolate_distance(features, reference, seed=cell.seed),
                "interval": lambda: distance_interval(features, reference, seed=cell.seed),
            }
            if logits is not None:
                measures["IS"] = lambda: inception_score(logits)
            counts = {"n": len(features), "n_reference": len(real), "n_precision": len(equal)}
            found = {name: _taken(measure) for name, measure in measures.items()}
            return counts | found | _shares(features, equal, self.context.device), []

        self.store.run(stage, execute)

    def features(
        self, job: Sampled, stages: tuple[Stage, ...], before: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return features (n, d) of sample stages one after another, and logits where there are."""
        directories = []
        for stage in stages:
            (sample,) = stage.needs
            self._features(job, stage, sample, before)
            before += sample.settings["stop"] - sample.settings["start"]
            directories.append(self.store.directory(stage))
        features = np.concatenate([load_array(d / "features.npy") for d in directories])
        if not all((d / "logits.npy").exists() for d in directories):
            return features, None
        return features, np.concatenate([load_array(d / "logits.npy") for d in directories])

    def _features(self, job: Sampled, stage: Stage, sample: Stage, before: int) -> None:
        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            self.drawing.sample(job, sample, before)
            name = sample_file(stage.settings["denoise"])
            images = load_array(self.store.directory(sample) / name)
            found = self.extract(images, job.cell.data.extractor)
            if found is None:
                return FOLLOWED
            files = [save_array(directory / "features.npy", found.features)]
            if found.logits is not None:
                files.append(save_array(directory / "logits.npy", found.logits))
            return {"n": len(images)}, files

        self.store.run(stage, execute)

    def statistics(self, cell: Cell, stage: Stage) -> FeatureStatistics:
        """Return the statistics of real images; they and the features are made once."""
        self._reference(cell, stage)
        return load_statistics(self.store.directory(stage) / "statistics.npz")

    def real_features(self, cell: Cell, stage: Stage) -> np.ndarray:
        """Return the features (n, d) of real images, in random order."""
        self._reference(cell, stage)
        return load_array(self.store.directory(stage) / "features.npy")

    def _reference(self, cell: Cell, stage: Stage) -> None:
        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = open_dataset(self.context, cell.data)
            images = dataset.train if stage.settings["split"] == "train" else dataset.test
            n = len(images)
            first = MAX_REFERENCE * stage.settings.get("block", 0)
            order = np.random.Generator(np.random.Philox(0)).permutation(n)
            order = order[first : first + MAX_REFERENCE]
            # In random order, so that the first few stand for all; on the disk, read in blocks.
            blocks = [order[i : i + 4096] for i in range(0, len(order), 4096)]
            found = [self.extract(images[block], cell.data.extractor) for block in blocks]
            if not self.world.is_main:
                return FOLLOWED
            features = np.concatenate([part.features for part in found if part is not None])
            files = [
                save_array(directory / "features.npy", features),
                save_array(directory / "order.npy", order),
            ]
            if first == 0:  # the last block may be a single image
                files.append(directory / "statistics.npz")
                save_statistics(files[-1], feature_statistics(features))
            return {"n": len(order), "n_split": n}, files

        self.store.run(stage, execute)

    def baseline(self, cell: Cell) -> None:
        """Take the distances of noise, of a Gaussian and of held-out real images."""

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            dataset = open_dataset(self.context, cell.data)
            reference = self.statistics(cell, cell.reference_stage())
            held_out = dataset.test if cell.reference == "train" else dataset.train
            rows = {
                "uniform noise": uniform_noise_samples(
                    dataset.train.shape[1:], cell.n_final, seed=0
                ),
                "Gaussian fitted to the pixels": pixel_gaussian_samples(
                    dataset.train, cell.n_final, seed=0
                ),
                "held-out real images": np.array(held_out[: cell.n_final]),
            }
            result = {}
            for name, images in rows.items():
                features = self._alone(images, cell.data.extractor)
                statistics = feature_statistics(features)
                result[name] = {
                    "distance": frechet_distance(statistics, reference),
                    "n": statistics.n,
                    "n_reference": reference.n,
                }
            return result, []

        self.store.run(cell.baseline_stage(), execute)

    def neighbours(self, job: Sampled, iteration: int, *, denoise: bool, final: bool) -> None:
        """Find the nearest training images of a snapshot's samples and, to compare, of test images.

        ``final`` takes all samples of the snapshot, else those that its selection took.
        """
        cell = job.cell
        stage = cell.neighbour_stage(iteration, denoise=denoise, final=final)
        real = cell.training_blocks()

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block in real:
                features = self.real_features(cell, block)
                yield features, load_array(self.store.directory(block) / "order.npy")

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            fakes = self.drawing.samples(job, iteration, denoise=denoise, final=final)
            fake, _ = self.features(job, stage.needs[len(real) :], job.n_sampled)
            held_out = np.array(open_dataset(self.context, cell.data).test[: cell.n_final])
            test = self._alone(held_out, cell.data.extractor)
            arrays: dict[str, np.ndarray] = {}
            for name, images, features in (("fake", fakes, fake), ("held_out", held_out, test)):
                mirrored = None
                if stage.settings["flip"]:
                    flips = np.ascontiguousarray(images[..., ::-1])
                    mirrored = self._alone(flips, cell.data.extractor)
                k = min(stage.settings["neighbours"], cell.data.n_train)
                found = nearest_in_blocks(features, blocks(), k=k, mirrored=mirrored)
                arrays |= {
                    f"{name}_train_index": found.index,
                    f"{name}_distance": found.distance,
                    f"{name}_flipped": found.flipped,
                }
            path = directory / "neighbours.npz"
            atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
            counts = {"n": len(fake), "n_held_out": len(test), "n_searched": cell.data.n_train}
            return counts, [path]

        self.store.run(stage, execute)

    def _alone(self, images: np.ndarray, extractor: str) -> np.ndarray:
        """Return the features of images in a job that one rank runs."""
        found = self.extract(images, extractor)
        assert found is not None
        return found.features

    def extract(self, images: np.ndarray, extractor: str) -> "Features | None":
        """Return the features of uint8 images (N, C, H, W) on rank 0, None on the others."""
        # Imported here: torch-fidelity costs seconds and memory that training has no use for.
        from scorekit.metrics.features import Features, extract

        world, n = self.world, len(images)
        blocks = [
            np.arange(first, min(first + EXTRACTION_BATCH, n))
            for first in range(0, n, EXTRACTION_BATCH)
        ]
        owned = [blocks[rank :: world.size] for rank in range(world.size)]
        own = None
        if owned[world.rank]:
            # Whole blocks, so that each passes through the network as it does on one rank.
            own = extract(
                images if world.size == 1 else images[np.concatenate(owned[world.rank])],
                extractor,
                batch_size=self._batch,
                device=self.context.device,
                weights_path=self.context.extractor_weights,
            )
        parts = world.gather(own)
        if parts is None or world.size == 1:
            return own
        place = np.argsort(np.concatenate([np.concatenate(o) for o in owned if o]))
        there = [part for part in parts if part is not None]
        logits = [part.logits for part in there if part.logits is not None]
        return Features(
            features=np.concatenate([part.features for part in there])[place],
            logits=np.concatenate(logits)[place] if logits else None,
        )


def _shares(fake: np.ndarray, real: np.ndarray, device: Any) -> dict[str, dict[str, Any]]:
    """Return precision to coverage from one set of distances, or of each why it is not there."""
    try:
        precision, density = manifold_metrics(fake, real, device=device)
    except MetricError as error:  # density looks at more neighbours than there may be
        alone = _taken(lambda: precision_recall(fake, real, device=device))
        return {"precision_recall": alone, "density_coverage": {"reason": str(error)}}
    return {
        "precision_recall": dataclasses.asdict(precision),
        "density_coverage": dataclasses.asdict(density),
    }


def _taken(measure: Callable[[], Any]) -> dict[str, Any]:
    """Return a metric as JSON values or, where the samples are too few for it, the reason."""
    try:
        found = dataclasses.asdict(measure())
    except MetricError as error:
        return {"reason": str(error)}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}
