"""The loss of a snapshot on training and on test images, alike in all else."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablations.engine.context import Context
from ablations.engine.stages import FOLLOWED
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import open_dataset
from ablations.pipeline.sampling import Drawing
from scorekit.checkpoints.store import snapshot_path
from scorekit.runtime.memory import ShrinkingBatch
from scorekit.training.held_out_loss import compare_losses, evaluated_losses
from scorekit.training.networks import load_snapshot

#: Pixels that pass through a network together, where a sampling batch has fewer: 64 of 32x32.
PIXELS = 2**16


class HeldOut:
    """The loss stages of one job; several ranks share the images."""

    def __init__(self, context: Context, drawing: Drawing) -> None:
        self.context, self.drawing = context, drawing
        self.store, self.world = context.store, context.world

    def loss(self, cell: Cell, iteration: int) -> None:
        """Take the training's objective of a snapshot on as many images of either split."""
        stage = cell.loss_stage(iteration)

        def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
            path = snapshot_path(self.store.directory(cell.train_stage()), iteration)
            device, n, draws = self.context.device, stage.settings["n"], stage.settings["draws"]
            network = load_snapshot(path, cell.train, cell.data.channels, cell.weights)
            network = network.to(device).requires_grad_(False)
            begin, end = self.world.share(n)
            dataset = open_dataset(self.context, cell.data)
            # Small images many at a time, whatever is sampled at a time.
            size = max(self.context.sampling_batch, PIXELS // cell.data.image_size**2)
            batches = ShrinkingBatch(size, "loss on training and test images")
            losses = {}
            for split, images in (("train", dataset.train), ("test", dataset.test)):
                # A random part, where it is one: images lie in no random order.
                order = np.random.Generator(np.random.Philox(0)).permutation(len(images))[:n]

                def evaluate(
                    first: int, last: int, images: np.ndarray = images, order: np.ndarray = order
                ) -> np.ndarray:
                    index = np.arange(begin + first, begin + last)
                    batch = torch.from_numpy(np.array(images[order[index]])).to(device)
                    batch = batch.contiguous(memory_format=torch.channels_last)
                    place = torch.from_numpy(index).to(device)
                    return evaluated_losses(network, cell.train, batch, place, draws)

                parts = batches.run(end - begin, evaluate)
                losses[split] = np.concatenate(parts) if parts else np.empty(0)
            found = self.world.gather(losses)
            if found is None:
                return FOLLOWED
            train, test = (np.concatenate([f[split] for f in found]) for split in losses)
            result = dataclasses.asdict(compare_losses(train, test, draws))
            if not all(map(math.isfinite, result.values())):
                raise ValueError(f"the loss of {cell.name} at {iteration} is not finite")
            return result, []

        self.drawing.run(cell, stage, execute)
