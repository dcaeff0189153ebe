"""How code runs on a machine: compiled, on several ranks, within its memory, timed, stopped.

- compilation: torch.compile, CUDA graphs and precision, decided in one place
- distributed, watch: ranks that add up and agree, and notice a death
- memory: batches that shrink where the device's memory is too small
- timing: candidate and reference timed by turns
- machine: the processor, its usable cores, and the conditions of a measurement
- interruption: how work ends before its time
- locks: advisory locks that end with their holder
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
