"""What finished and killed processes leave in an output folder, kept within bounds."""

import os
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from scorekit.files import remove_temporaries

#: Logs of an attempt are cut to their last so many bytes once it is over.
LOG_BYTES = 2**20
#: Attempts whose logs are kept, for each job of the grid.
ATTEMPTS_PER_JOB = 3
_OLD_S = 3600.0  # no file takes as long to write
_ATTEMPT = re.compile(
    r"(\d+(?:_\d+)??)_(?:\d+_log\.(?:out|err)|\d+_result\.pkl|submitted\.pkl|submission\.sh)"
)


def remove_leftovers(out: Path, n_jobs: int, *, live: Collection[str] = ()) -> None:
    """Remove old unfinished files of killed processes from ``out``, and logs beyond the bounds.

    ``n_jobs`` is the number of jobs in the grid, ``live`` the ids of submissions that may still
    begin or run. To be called by the folder's only launcher.
    """
    for folder in (out, out / "jobs", out / "samples", out / "report", *out.glob("report/*/")):
        remove_temporaries(folder, older_s=_OLD_S)
    prune_logs(out / "logs", ATTEMPTS_PER_JOB * n_jobs, live=live)


def prune_logs(folder: Path, keep: int, *, live: Collection[str] = ()) -> None:
    """Keep the files of the newest ``keep`` submissions, and of the ``live``; cut long logs.

    The files of a submission are named by submitit: an id, of one number or two of an array's
    element, then the task and what they hold.
    """
    submissions: dict[str, list[Path]] = defaultdict(list)
    for path in folder.glob("*"):
        if match := _ATTEMPT.fullmatch(path.name):
            submissions[match[1]].append(path)
    over = [name for name in submissions if name not in live and name.split("_")[0] not in live]
    over.sort(key=lambda name: max(p.stat().st_mtime for p in submissions[name]), reverse=True)
    for name in over[keep:]:
        for path in submissions[name]:
            path.unlink(missing_ok=True)
    for name in over[:keep]:
        for path in submissions[name]:
            if path.suffix in (".out", ".err") and path.stat().st_size > LOG_BYTES:
                _cut(path)


def _cut(path: Path) -> None:
    """Keep a log's end, from a line's beginning on."""
    with open(path, "r+b") as file:
        file.seek(-LOG_BYTES, os.SEEK_END)
        end = file.read().partition(b"\n")[2]
        file.seek(0)
        file.write(end)
        file.truncate()
