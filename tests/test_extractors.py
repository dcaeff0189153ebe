"""Feature extractors: what they take, and orderings that a Fréchet distance on them must keep."""

import numpy as np
import pytest
import torch
import torch_fidelity
from scipy.ndimage import gaussian_filter

from scorekit import extractors
from scorekit.data import digits_split, photo_patches
from scorekit.features import extract_features
from scorekit.files import CorruptFile
from scorekit.metrics import (
    FeatureStatistics,
    MetricError,
    default_extractor,
    distance_label,
    extractor_digest,
    feature_statistics,
    frechet_distance,
    metric_label,
    pixel_gaussian_samples,
    uniform_noise_samples,
)

SETS = {"digits": digits_split, "patches": photo_patches}


def statistics(images: np.ndarray, extractor: str) -> FeatureStatistics:
    return feature_statistics(extract_features(images, extractor))


@pytest.mark.parametrize(("name", "size"), [("digits", 8), ("patches", 16)])
def test_shipped_extractors_do_not_depend_on_the_batch(name, size):
    images = SETS[name]("test")[0][:70]
    extractor = default_extractor(name, images.shape[1])
    features = extract_features(images, extractor)
    assert features.shape == (70, 64) and features.dtype == np.float32
    for batch_size in (1, 33):
        again = extract_features(images, extractor, batch_size=batch_size)
        assert np.allclose(features, again, rtol=1e-4, atol=1e-5)
    from_torch = extract_features(torch.from_numpy(images), extractor)
    assert np.array_equal(features, from_torch)


def test_digits_cnn_knows_unseen_digits():
    images, labels = digits_split("test")
    network = torch_fidelity.utils.create_feature_extractor(
        "digits-cnn", ["logits"], cuda=False, verbose=False
    )
    (logits,) = network(torch.from_numpy(images))
    assert (logits.argmax(dim=1).numpy() == labels).mean() >= 0.97


@pytest.mark.parametrize(
    ("extractor", "shape"),
    [
        ("digits-cnn", (1, 28, 28)),
        ("digits-cnn", (1, 9, 8)),
        ("patches-cnn", (3, 32, 48)),
        ("patches-cnn", (1, 8, 8)),
    ],
)
def test_other_sizes_are_taken(extractor, shape):
    features = extract_features(uniform_noise_samples(shape, 3, 0), extractor)
    assert features.shape == (3, 64) and np.isfinite(features).all()


def test_grey_is_rgb_repeated():
    grey = uniform_noise_samples((1, 12, 12), 4, 0)
    assert np.array_equal(
        extract_features(grey, "patches-cnn"),
        extract_features(grey.repeat(3, axis=1), "patches-cnn"),
    )


@pytest.mark.parametrize(
    ("extractor", "images", "message"),
    [
        (
            "digits-cnn",
            np.zeros((2, 3, 8, 8), np.uint8),
            r"digits-cnn: .*grey \(1 channel\) images",
        ),
        ("digits-cnn", np.zeros((2, 1, 7, 8), np.uint8), "at least 8x8"),
        ("patches-cnn", np.zeros((2, 4, 8, 8), np.uint8), "RGB or grey"),
        ("patches-cnn", np.zeros((2, 3, 8, 8), np.float32), "float32 .* uint8"),
        ("patches-cnn", np.zeros((0, 3, 8, 8), np.uint8), "non-empty"),
        ("patches-cnn", np.zeros((3, 8, 8), np.uint8), r"\(N, C, H, W\) is right"),
        ("resnet", np.zeros((2, 3, 8, 8), np.uint8), "resnet: unknown; known are digits-cnn, "),
        (
            "inception-v3-compat",
            np.zeros((2, 3, 8, 8), np.uint8),
            r"weights-inception-2015-12-05-6726825d\.pth with --inception-weights PATH",
        ),
        ("inception-v3-compat", np.zeros((2, 2, 8, 8), np.uint8), "2 channels"),
    ],
)
def test_bad_input_to_extractors_is_one_line(extractor, images, message):
    with pytest.raises(MetricError, match=message) as caught:
        extract_features(images, extractor)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"junk", "pickle", "other"])
def test_inception_weights_that_are_none(tmp_path, capsys, content):
    path = tmp_path / "w.pth"
    if content == "pickle":
        torch.save(Opener(), path)
    elif content == "other":
        torch.save({"weight": torch.zeros(3)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MetricError, match=r"--inception-weights .*w\.pth: .*6726825d\.pth"):
        extract_features(np.zeros((2, 3, 8, 8), np.uint8), "inception-v3-compat", weights_path=path)
    assert "unpickled" not in capsys.readouterr().out


class Opener:
    """What a hostile weights file could hold: unpickling it would run code."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_names():
    assert default_extractor("digits", 1) == "digits-cnn"
    assert default_extractor("patches", 3) == "patches-cnn"
    assert default_extractor("imagefolder:digits", 1) == "patches-cnn"
    assert default_extractor("imagefolder:x", 3, "w.pth") == "inception-v3-compat"
    with pytest.raises(MetricError, match="4 channels; 1 or 3"):
        default_extractor("imagefolder:x", 4)
    assert distance_label("inception-v3-compat") == "FID"
    assert distance_label("digits-cnn") == "FD[digits-cnn]"
    for metric in ("IS", "KID", "precision", "recall"):
        assert metric_label(metric, "inception-v3-compat") == metric
        assert metric_label(metric, "digits-cnn") == f"{metric}[digits-cnn]"


def test_weights_are_identified_small_and_checked(tmp_path):
    digests = {extractor_digest(name) for name in extractors.EXTRACTORS}
    assert len(digests) == 2
    with pytest.raises(MetricError, match="no weights file"):
        extractor_digest("inception-v3-compat")
    for name in extractors.EXTRACTORS:
        assert (extractors.WEIGHTS / f"{name}.safetensors").stat().st_size < 200_000
    (tmp_path / "w").write_bytes(b"junk")
    with pytest.raises(CorruptFile, match="no weights for digits-cnn"):
        extract_features(
            np.zeros((1, 1, 8, 8), np.uint8), "digits-cnn", weights_path=tmp_path / "w"
        )


def test_training_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setitem(extractors.EPOCHS, "digits-cnn", 1)
    accuracy = [extractors.train("digits-cnn", tmp_path / str(i), seed=3) for i in range(2)]
    assert accuracy[0] == accuracy[1]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    extractors.train("digits-cnn", tmp_path / "2", seed=4)
    assert (tmp_path / "2").read_bytes() != (tmp_path / "0").read_bytes()


# --- orderings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_better_samples_are_nearer(name):
    """Real halves << test split < pixel Gaussian < uniform noise."""
    train, test = SETS[name]("train")[0], SETS[name]("test")[0]
    extractor = default_extractor(name, train.shape[1])
    reference = statistics(train, extractor)
    halves = frechet_distance(statistics(train[::2], extractor), statistics(train[1::2], extractor))
    held_out, gaussian, uniform = (
        frechet_distance(reference, statistics(images, extractor))
        for images in (
            test,
            pixel_gaussian_samples(train, 1500, 0),
            uniform_noise_samples(train.shape[1:], 1500, 0),
        )
    )
    assert halves < 0.05 * gaussian
    assert halves < held_out < 0.5 * gaussian < gaussian < 0.5 * uniform


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_stronger_corruption_is_farther(name, kind):
    images = SETS[name]("train")[0][:1500]
    extractor = default_extractor(name, images.shape[1])
    reference = statistics(images, extractor)
    rng = np.random.Generator(np.random.Philox(0))
    noise = rng.standard_normal(images.shape)

    def corrupt(strength: float) -> np.ndarray:
        if kind == "noise":
            changed = images + 255 * strength * noise
        else:
            changed = gaussian_filter(images.astype(np.float64), (0, 0, strength, strength))
        return np.rint(changed.clip(0, 255)).astype(np.uint8)

    strengths = (0.02, 0.05, 0.1, 0.2, 0.4) if kind == "noise" else (0.4, 0.6, 0.8, 1.2, 2.0)
    values = [0.0] + [
        frechet_distance(reference, statistics(corrupt(s), extractor)) for s in strengths
    ]
    assert all(np.diff(values) > 0), values
