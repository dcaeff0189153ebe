"""A job that sleeps, and says when and in which process."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ablations.engine.context import Context
from ablations.engine.job import Job, Work


@dataclass(frozen=True, kw_only=True)
class Sleep(Job):
    kind = "sleep"
    called: str
    seconds: float = 0.3

    @property
    def name(self) -> str:
        return self.called

    @property
    def title(self) -> str:
        return f"sleep of {self.called}"

    def path(self, context: Context) -> Path:
        return context.out / f"{self.called}.json"

    def is_done(self, context: Context, *, thorough: bool = True) -> bool:
        return self.path(context).exists()

    def run(self, work: Work) -> None:
        began = time.time()
        time.sleep(self.seconds)
        span = [began, time.time(), os.getpid()]
        self.path(work.context).write_text(json.dumps(span))
