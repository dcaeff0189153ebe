"""What a program is started in, made fit for it: terminals of any encoding, closed streams."""

import os
import sys


def use_any_terminal() -> None:
    """Let what is printed never fail for the terminal's sake.

    A character that its encoding has not is shown as "?". A stream that was closed takes what is
    printed and forgets it, and its descriptor is not given to a file, into which a library's
    messages would then be written.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one, which is this
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the process's life
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
