"""Advisory locks that the system releases however their holder ends, where the disk has them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from typing import IO, Any

__all__ = ["NO_LOCKS", "hold"]

log = logging.getLogger("scorekit")

#: What flock says where the file system has no locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_said: set[int] = set()  # disks


def hold(file: IO[Any], on_wait: Callable[[], None]) -> bool:
    """Lock an open file until it is closed, waiting for its holder; False where there are no locks.

    ``on_wait`` is called before waiting. A warning says once for each disk that it has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if (device := os.fstat(file.fileno()).st_dev) not in _said:
            _said.add(device)
            log.warning(
                "%s cannot be locked (%s): give the same work there to one process at a time",
                file.name,
                error,
            )
        return False
    return True
