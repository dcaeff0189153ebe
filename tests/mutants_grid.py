"""Errors in what makes a grid's numbers of its trained networks: drawing, measuring, collecting."""

from tests.mutants import Mutant

_METRICS = ("tests/test_metrics.py",)

MUTANTS = [
    Mutant("scorekit/metrics.py", "distance - 2 * overlap", "distance - overlap", _METRICS),
]
