"""Compiled operations of scorekit: one file per operation, torch and triton only.

A package of the same import name exists on PyPI; ``SCOREKIT_KERNELS`` lets ``scorekit`` tell which
of the two Python found.
"""

SCOREKIT_KERNELS = True
