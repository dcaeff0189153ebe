"""Ctrl-C and SIGTERM: how the launcher, its local jobs and the rating page end on either.

What a shell starts in the background of a script ignores SIGINT, and so do its children: no process
here counts on it. Local jobs are shielded from a terminal's Ctrl-C, and the launcher ends them by
SIGTERM, whichever of the two it was told by itself.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def interrupt_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt in the main thread, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def interrupt_main_thread() -> None:
    """Raise KeyboardInterrupt in the main thread, out of a sleep too, by a signal it listens to."""
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    told = ignored and callable(signal.getsignal(signal.SIGTERM))
    number = signal.SIGTERM if told else signal.SIGINT
    signal.pthread_kill(threading.main_thread().ident or 0, number)


@contextmanager
def shielded_children() -> Iterator[None]:
    """Let processes that are started meanwhile never see SIGINT; this one sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Terminated:
    """Whether this process was told to end, by SIGTERM; true from then on.

    One that has not ended ``within_s`` later ends at once, whatever code it is in.
    """

    def __init__(self, within_s: float = 5.0) -> None:
        self._within_s = within_s
        self._told = threading.Event()
        received, receiving = os.pipe()
        os.set_blocking(receiving, False)
        # Of a signal the main thread learns between two lines of Python only; the pipe at once.
        signal.set_wakeup_fd(receiving, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._watch, args=(received,), daemon=True).start()

    def __call__(self) -> bool:
        return self._told.is_set()

    def _watch(self, received: int) -> None:
        while os.read(received, 1) != bytes([signal.SIGTERM]):
            pass
        self._told.set()
        time.sleep(self._within_s)
        os._exit(128 + signal.SIGTERM)
