"""Where the checkout is, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The papers and data that some tests compare with; such a test is skipped where they are not.
SHARED = ROOT.parent / "shared"
