"""Performance measurements: ratios against a reference, taken in one run."""
