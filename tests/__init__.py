"""The tests, a package so that ``python -m tests.mutants`` finds it before others of that name."""
