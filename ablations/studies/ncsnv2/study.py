"""The study of the NCSNv2 paper as the launcher runs it."""

from pathlib import Path


def build_grid_report(out: Path) -> Path:
    """Make the report of a grid from its files; return its page."""
    # Imported here: the figures' libraries would slow down --help, --status and every error.
    from ablations.pipeline.collect import collect
    from ablations.studies.ncsnv2.report import build_report

    return build_report(collect(out), out / "report")
