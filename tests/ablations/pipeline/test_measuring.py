"""What the quality stage makes of few samples."""

import dataclasses

import numpy as np

from ablations.pipeline.measuring import _shares
from scorekit.metrics.manifold import manifold_metrics, precision_recall


def test_precision_is_there_where_samples_are_too_few_for_density():
    fake, real = np.random.Generator(np.random.Philox(0)).standard_normal((2, 6, 3))
    both = manifold_metrics(fake, real)
    found = _shares(fake, real, "cpu")
    assert found["precision_recall"] == dataclasses.asdict(both[0])
    assert found["density_coverage"] == dataclasses.asdict(both[1])
    few = _shares(fake[:5], real[:5], "cpu")
    assert few["precision_recall"] == dataclasses.asdict(precision_recall(fake[:5], real[:5]))
    assert few["density_coverage"] == {
        "reason": "real: shape (5, 3) given; (n, d) with n >= 6 is right"
    }
    none = _shares(fake[:3], real[:3], "cpu")
    assert set(none["precision_recall"]) == set(none["density_coverage"]) == {"reason"}
