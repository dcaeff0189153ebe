"""Images to features and logits in one pass, whatever the batch; extractors of a user's own."""

import numpy as np
import pytest
import torch
from torch_fidelity.utils import create_feature_extractor

from scorekit.data.embedded import digits_split
from scorekit.metrics.baselines import uniform_noise_samples
from scorekit.metrics.features import extract, extract_features, register_extractor
from scorekit.metrics.spaces import OWN_EXTRACTORS, MetricError, distance_label


def test_one_pass_gives_features_and_logits(monkeypatch):
    images, labels = digits_split("test")
    passes = []
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: passes.append(len(x)) or forward(self, x)
    )
    got = extract(images, "digits-cnn", batch_size=100)
    assert sum(passes) == len(images) and max(passes) == 100
    assert got.features.shape == (len(images), 64) and got.logits.shape == (len(images), 10)
    assert got.features.dtype == got.logits.dtype == np.float32
    assert (got.logits.argmax(axis=1) == labels).mean() >= 0.97
    assert np.array_equal(extract_features(images, "digits-cnn", batch_size=100), got.features)


@pytest.mark.parametrize(("extractor", "classes"), [("digits-cnn", 10), ("patches-cnn", 40)])
def test_features_and_logits_do_not_depend_on_the_batch(extractor, classes):
    images = uniform_noise_samples((1, 12, 9), 50, 0)
    once = extract(images, extractor)
    assert once.logits.shape == (50, classes)
    for batch_size in (1, 7, 50):
        again = extract(images, extractor, batch_size=batch_size)
        assert np.allclose(once.features, again.features, rtol=1e-4, atol=1e-5)
        assert np.allclose(once.logits, again.logits, rtol=1e-4, atol=1e-4)
    again = extract(images, extractor)
    assert np.array_equal(once.features, again.features)
    assert np.array_equal(once.logits, again.logits)


def test_batches_below_one_are_refused():
    with pytest.raises(MetricError, match="batch_size=0: a whole number from 1"):
        extract(uniform_noise_samples((1, 8, 8), 2, 0), "digits-cnn", batch_size=0)


@pytest.mark.slow
def test_inception_gives_what_torch_fidelity_gives(inception_weights):
    images = uniform_noise_samples((3, 16, 16), 3, 0)
    arguments = {"weights_path": inception_weights}
    got = extract(images, "inception-v3-compat", batch_size=2, **arguments)
    network = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(inception_weights),
    )
    with torch.no_grad():
        features, logits = network(torch.from_numpy(images))
    assert got.features.shape == (3, 2048) and got.logits.shape == (3, 1008)
    assert np.allclose(got.features, features.numpy(), rtol=1e-3, atol=1e-5)
    assert np.allclose(got.logits, logits.numpy(), rtol=1e-3, atol=1e-5)
    grey = extract(images[:, :1], "inception-v3-compat", **arguments)
    rgb = extract(images[:, :1].repeat(3, axis=1), "inception-v3-compat", **arguments)
    assert np.array_equal(grey.features, rgb.features)


def test_an_extractor_of_the_users_own():
    register_extractor("mean-colour-for-test", lambda: lambda x: x.float().mean(dim=(2, 3)))
    images = uniform_noise_samples((3, 8, 8), 5, 0)
    got = extract(images, "mean-colour-for-test", batch_size=2)
    assert np.allclose(got.features, images.mean(axis=(2, 3)), rtol=1e-5)
    assert got.logits is None
    assert distance_label("mean-colour-for-test") == "FD[mean-colour-for-test]"
    with pytest.raises(MetricError, match="already registered"):
        register_extractor("digits-cnn", lambda: lambda x: x)
    with pytest.raises(MetricError, match="already registered"):
        register_extractor("mean-colour-for-test", lambda: lambda x: x)
    del OWN_EXTRACTORS["mean-colour-for-test"]  # as a plugin that was edited is forgotten
    with pytest.raises(MetricError, match="mean-colour-for-test: unknown; known are cifar-cnn"):
        extract(images, "mean-colour-for-test")
    register_extractor("mean-colour-for-test", lambda: lambda x: x.float().flatten(1)[:, :2])
    assert extract(images, "mean-colour-for-test").features.shape == (5, 2)
    register_extractor("wrong-for-test", lambda: lambda x: x.float())
    with pytest.raises(MetricError, match=r"gave \(2, 3, 8, 8\) for 2 images; \(2, d\) is right"):
        extract(images[:2], "wrong-for-test")


class Dropping(torch.nn.Module):
    """A network whose features are random, and those of its batch, while it is training."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3))

    def forward(self, x):
        return self.layers(x.float().mean(dim=(2, 3)))


def test_networks_of_the_users_own_are_evaluated_not_trained():
    register_extractor("dropping-for-test", Dropping)
    images = uniform_noise_samples((3, 8, 8), 6, 0)
    whole = extract(images, "dropping-for-test").features
    assert np.array_equal(whole, extract(images, "dropping-for-test", batch_size=1).features)
    assert np.allclose(whole, images.mean(axis=(2, 3)), rtol=1e-4)


def test_a_batch_that_does_not_fit_is_halved(caplog):
    sizes = []

    def small(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return images.flatten(1).float()[:, :2]

    register_extractor("little-memory", lambda: small)
    images = uniform_noise_samples((1, 8, 8), 11, 0)
    got = extract(images, "little-memory", batch_size=8)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert np.array_equal(got.features, images.reshape(11, -1)[:, :2])
    assert "feature extraction: out of memory with a batch of 8" in caplog.text
    assert "going on with batches of 2" in caplog.text
