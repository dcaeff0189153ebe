"""Where and how jobs run."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from ablations.engine.plugins import Plugin
from ablations.engine.stages import StageStore
from scorekit.runtime.distributed import World


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how jobs run: nothing here can change a result beyond rounding."""

    out: Path
    data_root: Path
    device: str
    threads: int
    compile: bool
    sampling_batch: int
    extractor_weights: Path | None = None
    accumulation: int = 1
    rerun: bool = False  # results that other code made are made again
    plugins: tuple[Plugin, ...] = ()  # which a process loads before its job
    world: World = field(default_factory=World)  # this process's place among a job's ranks

    @classmethod
    def reading(cls, out: Path, data_root: Path | None = None) -> Self:
        """Return a context for reading results, in which only paths matter.

        ``data_root`` is of no use to who looks at no data.
        """
        return cls(
            out=out,
            data_root=(out if data_root is None else data_root).resolve(),
            device="cpu",
            threads=1,
            compile=False,
            sampling_batch=1,
        )

    @cached_property
    def store(self) -> StageStore:
        """The stages' folders; kept, because it remembers which files it has checked.

        What is known of real images stands beside them: every grid on them shares it.
        """
        shared = {"reference": self.data_root}
        return StageStore(self.out / "stages", shared, self.world, rerun=self.rerun)

    @property
    def samples(self) -> Path:
        """The folder of the sample dumps."""
        return self.out / "samples"
