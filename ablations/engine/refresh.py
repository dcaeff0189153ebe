"""The report, made again only where results are newer than it."""

from collections.abc import Callable
from pathlib import Path


def mark_stale(out: Path) -> None:
    """Note that results will be newer than the report: the note survives whatever kills us."""
    _note(out).touch()


def refresh_report(out: Path, build: Callable[[Path], Path]) -> Path:
    """Return the page ``OUT/report/index.html``, which ``build`` makes where it is stale."""
    page, note = out / "report" / "index.html", _note(out)
    noted = note.stat().st_mtime_ns if note.exists() else None
    if page.exists() and noted is None:
        return page
    page = build(out)
    # A note that another launcher left meanwhile is of results that this page may lack.
    if note.exists() and note.stat().st_mtime_ns == noted:
        note.unlink(missing_ok=True)
    return page


def _note(out: Path) -> Path:
    return out / "report.pending"
