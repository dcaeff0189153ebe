"""Weights and training states on disk: whole or absent, checked before they are trusted.

- store: the rolling checkpoints and the snapshots of a run
- tensors: a file of tensors with its own digest
- export: a snapshot's weights as one safetensors file; ``python -m scorekit.checkpoints export``
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
