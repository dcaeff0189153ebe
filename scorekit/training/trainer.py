"""Training a network: resumable bit for bit on the CPU, one function of its settings.

Everything random (data order, noise scale, noise, flips, dequantisation) is a function of the seed
and the iteration, so a checkpoint holds weights, averages, optimiser state and the losses so far.
"""

import logging
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.philox import philox_key
from scorekit.data.store import Dataset
from scorekit.files import CorruptFile
from scorekit.models.score_network import check_image_size
from scorekit.runtime.compilation import autocast, compile_seconds, compiled, precision_context
from scorekit.runtime.distributed import World
from scorekit.runtime.interruption import Diverged, Stopped, never
from scorekit.techniques.ema import ema_update
from scorekit.techniques.ema_profiles import parse_ema
from scorekit.training.batches import Batches
from scorekit.training.gradients import GradientSum, check_accumulation, micro_batches
from scorekit.training.loss import WATCH_STEP, Loss, ScoreLoss
from scorekit.training.networks import build_network, check_trainable
from scorekit.training.resumption import Resumption
from scorekit.training.settings import RunSettings, TrainSettings, identity, trajectory_digest

_log = logging.getLogger("scorekit")


class Trainer:
    """One training run in one directory; :meth:`run` starts it or goes on where it stopped.

    ``directory`` receives rolling checkpoints, a snapshot at each of
    ``settings.snapshot_iterations`` (raw and EMA weights, and those of each of
    ``settings.ema_profiles``) and, at the end, nothing else is needed. ``compile`` and ``device``
    change speed and rounding only.

    TrainSettings tell network and loss. A ``network`` of one's own, any module whose samples do
    not depend on each other, and a ``loss`` (:data:`scorekit.training.loss.Loss`) take their place;
    with both, RunSettings do. Who continues a run gives the same ones, with whatever weights.
    ``test_loss`` is what is watched on test images, with the averaged weights; where it is not
    given, the loss, and DSM's where that follows from the settings.

    ``world`` and ``accumulation`` change speed and rounding, too: the ranks of a
    :func:`scorekit.runtime.distributed.process_group` share a batch by index, each takes its share
    in ``accumulation`` micro-batches, and every gradient is summed over all of them before the one
    step that every rank takes alike. Rank 0 writes the files, and all read them; begun by one
    number of ranks, a run may be continued by another. Raises ValueError where the network does not
    take the dataset's images or cannot be trained so, and where micro-batches would be empty.
    """

    def __init__(
        self,
        settings: RunSettings,
        dataset: Dataset,
        directory: str | Path,
        *,
        network: nn.Module | None = None,
        loss: Loss | None = None,
        test_loss: Loss | None = None,
        device: str = "cpu",
        compile: bool = True,
        world: World | None = None,
        accumulation: int = 1,
    ) -> None:
        self.world = World() if world is None else world
        if isinstance(settings, TrainSettings):
            if network is None:
                check_image_size(settings.architecture, dataset.image_size)
                network = build_network(settings, dataset.channels)
            if loss is None:
                loss = ScoreLoss(settings, device, augmented=True)
                loss.check(network)
                # Whatever the training's objective, so that runs compare.
                watched = ScoreLoss.comparable(settings, device, objective="dsm")
                test_loss = watched if test_loss is None else test_loss
        if network is None or loss is None:
            raise ValueError("network and loss are needed, where no TrainSettings tell them")
        check_trainable(network)
        check_accumulation(accumulation, settings.batch_size, self.world.size)
        self.settings, self.dataset, self.directory = settings, dataset, Path(directory)
        self.device = device
        self.directory.mkdir(parents=True, exist_ok=True)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.ema_network = deepcopy(self.network).eval().requires_grad_(False)
        self.averages = {name: deepcopy(self.ema_network) for name in settings.ema_profiles}
        self._profiles = {name: parse_ema(name) for name in settings.ema_profiles}
        self._parameters = list(self.network.parameters())
        self.optimizer = torch.optim.Adam(
            self._parameters,
            lr=settings.learning_rate,
            eps=settings.adam_eps,
            amsgrad=settings.amsgrad,
            fused=True,
        )
        self.iteration = 0
        self.elapsed_s = 0.0  # without compile_s
        self.compile_s = 0.0
        self.snapshot_s: dict[int, float] = {}  # elapsed_s at each snapshot
        self.losses: list[float] = []  # one per iteration
        self.test_losses: list[tuple[int, float]] = []  # (iteration, loss) with EMA weights
        self.best_test_loss = float("inf")  # among those at checkpoints
        self._accumulation = accumulation
        alone = self.world.size == accumulation == 1
        self._gradients = None if alone else GradientSum(self._parameters, self.world)
        self._key = philox_key(settings.seed, device)
        self._losses, self._watched = loss, loss if test_loss is None else test_loss
        compile = compile and getattr(loss, "compiles", True)
        self._loss = compiled(self._batch_loss, enable=compile, device=device, cuda_graphs=True)
        self._batch = Batches(dataset.train, settings.batch_size, settings.seed)
        digest = trajectory_digest(identity(settings) | {"data": dataset.fingerprint})
        self._files = Resumption(
            directory,
            settings.snapshot_iterations,
            digest,
            self.world,
            weights=("raw", "ema", *settings.ema_profiles),
        )

    def run(
        self,
        progress: Callable[[int, float], None] = lambda iteration, loss: None,
        *,
        stop: Callable[[], bool] = never,
        checkpoint_every_s: float = 600,
    ) -> None:
        """Train to the last iteration; ``progress`` gets (iteration, loss) now and then.

        ``stop`` is asked before each iteration; where it says True, on whichever rank, the
        checkpoint of exactly this iteration is written and all raise Stopped. One is also written
        at each snapshot and where the last is ``checkpoint_every_s`` seconds old: a killed process
        loses no more than that. Raises Diverged at a NaN or infinite loss or weight.
        """
        settings = self.settings
        self._resume()
        compiled_before = compile_seconds() - self.compile_s
        started = time.monotonic() - self.elapsed_s - self.compile_s
        pending: list[Tensor] = []

        def settle() -> None:
            self._accept(pending)
            self.compile_s = compile_seconds() - compiled_before
            self.elapsed_s = time.monotonic() - started - self.compile_s

        snapshots = set(settings.snapshot_iterations)
        saved, saved_at = self.iteration, time.monotonic()
        for iteration in range(self.iteration, settings.iterations):
            stopping, late = self.world.any(
                stop(), time.monotonic() - saved_at >= checkpoint_every_s
            )
            if (stopping or late) and saved < iteration:
                settle()
                self._check_weights()
                self._files.save(self._state(), passing=True)
                saved, saved_at = iteration, time.monotonic()
            if stopping:
                raise Stopped(f"training stopped at iteration {iteration} and continues from there")
            pending.append(self.step(iteration))
            done = iteration + 1
            if done % settings.test_interval and done not in snapshots:
                continue
            # Losses are read, hence the device waited for, here and at checkpoints only.
            settle()
            if done % settings.test_interval == 0:
                self.test_losses.append((done, self._test_loss()))
            progress(done, self.losses[-1])
            if done in snapshots:
                self.snapshot_s[done] = self.elapsed_s
                self._save()
                saved, saved_at = done, time.monotonic()

    def _accept(self, pending: list[Tensor]) -> None:
        """Read the losses of the last iterations, which are then counted as done."""
        losses = torch.stack(pending).tolist() if pending else []
        pending.clear()
        for loss in losses:
            if not np.isfinite(loss):
                what = f"the loss is {loss}"
                raise Diverged(self.iteration + 1, what, self._files.last_iteration())
            self.losses.append(loss)
            self.iteration += 1

    def step(self, iteration: int) -> Tensor:
        """Take one optimiser step on the batch of ``iteration``; return its loss, on the device."""
        begin, end = self.world.share(self.settings.batch_size)
        images = self._batch(iteration, begin, end)
        images = images.to(self.device, memory_format=torch.channels_last)
        index = torch.arange(begin, end, device=self.device)
        step = torch.tensor(iteration, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        if self._gradients is not None:
            self._gradients.clear()
        with precision_context(self.settings.precision):
            for first, last in micro_batches(end - begin, self._accumulation):
                if self._key.is_cuda:
                    torch.compiler.cudagraph_mark_step_begin()
                with autocast(self.settings.precision, self.device):
                    loss = self._loss(images[first:last], index[first:last], step, self._key)
                loss.backward()
                if self._gradients is not None:
                    self._gradients.add(loss)
        # What a CUDA graph returns is overwritten by the next step.
        loss = loss.detach().clone() if self._gradients is None else self._gradients.finish()
        self.optimizer.step()
        ema_update(self.ema_network.parameters(), self._parameters, self.settings.ema_momentum)
        for name, averaged in self.averages.items():
            momentum = self._profiles[name].momentum(iteration + 1)
            ema_update(averaged.parameters(), self._parameters, momentum)
        return loss

    def _batch_loss(self, images: Tensor, index: Tensor, step: Tensor, key: Tensor) -> Tensor:
        losses = self._losses(self.network, images, index, step, key)
        # Over the whole batch, of which these may be a part: the sum of the parts is its mean.
        return losses.sum() / self.settings.batch_size

    @torch.no_grad()
    def _test_loss(self) -> float:
        """Watched loss of the EMA weights on one fixed batch of test images with fixed noise.

        To watch a run and to keep its best checkpoint, and no estimate of the loss on the split:
        :mod:`scorekit.training.held_out_loss` has one.
        """
        n = min(self.settings.batch_size, len(self.dataset.test))
        begin, end = self.world.share(n)
        images = torch.from_numpy(np.array(self.dataset.test[begin:end])).to(self.device)
        index = torch.arange(begin, end, device=self.device)
        step = torch.tensor(WATCH_STEP, device=self.device)
        precision = self.settings.precision
        total = torch.zeros((), device=self.device)
        with precision_context(precision), autocast(precision, self.device):
            for first, last in micro_batches(end - begin, self._accumulation):
                part = (images[first:last], index[first:last])
                total += self._watched(self.ema_network, *part, step, self._key).sum()
        self.world.add_(total)
        return float(total / n)

    def _save(self) -> None:
        """Write the snapshot of this iteration, then its checkpoint."""
        self._check_weights()
        self._files.save_snapshot(self._state())
        # The best is judged at snapshots only: elsewhere it would depend on where a run stopped.
        current = self.test_losses[-1][1] if self.test_losses else float("inf")
        is_best = current < self.best_test_loss
        self.best_test_loss = min(current, self.best_test_loss)
        self._files.save(self._state(), is_best=is_best)

    def _check_weights(self) -> None:
        for network in (self.network, self.ema_network, *self.averages.values()):
            for name, value in network.state_dict().items():
                if not bool(value.isfinite().all()):
                    what = f"the weights {name} are not finite"
                    raise Diverged(self.iteration, what, self._files.last_iteration())

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "elapsed_s": self.elapsed_s,
            "compile_s": self.compile_s,
            "snapshot_s": torch.tensor(list(self.snapshot_s.items()), dtype=torch.float64).reshape(
                -1, 2
            ),
            "best_test_loss": self.best_test_loss,
            "raw": self.network.state_dict(),
            "ema": self.ema_network.state_dict(),
            **{name: averaged.state_dict() for name, averaged in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "test_losses": torch.tensor(self.test_losses, dtype=torch.float64).reshape(-1, 2),
        }

    def _resume(self) -> None:
        state = self._files.load(self.device)
        if state is None:
            return
        try:
            self._restore(state)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"its checkpoint is not of this training ({type(error).__name__}: {error})"
            raise CorruptFile(self.directory, reason) from error
        _log.info("training continues at iteration %d", self.iteration)

    def _restore(self, state: dict[str, Any]) -> None:
        kept = {"raw": self.network, "ema": self.ema_network, **self.averages}
        for weights, network in kept.items():
            try:
                network.load_state_dict(state[weights])
            except RuntimeError as error:  # names or shapes
                raise ValueError(str(error)) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        self.elapsed_s, self.compile_s = state["elapsed_s"], state["compile_s"]
        # Those of earlier versions have none.
        self.snapshot_s = {int(i): s for i, s in state.get("snapshot_s", torch.empty(0)).tolist()}
        self.best_test_loss = state["best_test_loss"]
        self.losses = state["losses"].tolist()
        self.test_losses = [(int(i), loss) for i, loss in state["test_losses"].tolist()]
