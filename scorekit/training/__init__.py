"""Training a score network, resumable bit for bit, and fitting a kernel exponential family.

- trainer: the loop, of a network and a loss; settings: what its result depends on
- batches: the images of each iteration; loss: the objective as a function of them
- objectives: what training can minimise, by name
- gradients: summed over micro-batches and ranks
- resumption: what a run leaves on disk, and where it goes on
- networks: networks from their settings and from snapshots
- held_out_loss: the objective on training and held-out images (Song & Ermon 2020, Fig. 15)
- dkef: fitting a deep kernel exponential family
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
