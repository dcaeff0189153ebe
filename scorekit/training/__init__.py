"""Training a score network, resumable bit for bit, and fitting a kernel exponential family.

- trainer: the loop; settings: what its result depends on
- batches: dequantised and flipped images; gradients: summed over micro-batches and ranks
- networks: networks from their settings and from snapshots
- held_out_loss: the objective on training and held-out images (Song & Ermon 2020, Fig. 15)
- dkef: fitting a deep kernel exponential family
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
