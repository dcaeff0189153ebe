"""How good samples are, measured in a named feature space.

- spaces: the feature spaces, and what a distance in each is called
- features: images to features, through torch-fidelity; extractors: the small networks for it
- downloads: the weights of Inception, fetched once; dinov2: the space of DINOv2
- frechet: statistics of features and the Fréchet distance (Heusel et al. 2017)
- sample_quality: Inception score and KID
- manifold: precision, recall, density and coverage, in blocks
- uncertainty: intervals, and the distance at infinite n (Chong & Forsyth 2020)
- influence: what each image does to a distance, from which many images' intervals follow
- neighbours: nearest neighbours of samples among images
- exact_score: a mixture whose score is known, and what samples of it lack
- baselines: images that no model made, as yardsticks
- train_extractor: ``python -m scorekit.metrics.train_extractor`` trains a small network again
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
