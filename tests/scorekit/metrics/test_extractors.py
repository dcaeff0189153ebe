"""Feature extractors: what they take, and orderings that a Fréchet distance on them must keep."""

import numpy as np
import pytest
import torch
import torch_fidelity
from places import SHARED
from scipy.ndimage import gaussian_filter

from scorekit.data.embedded import digits_split, photo_patches
from scorekit.data.imagefolder import Square, list_images, read_images
from scorekit.files import CorruptFile
from scorekit.metrics import extractors
from scorekit.metrics.baselines import pixel_gaussian_samples, uniform_noise_samples
from scorekit.metrics.features import extract, extract_features
from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.metrics.spaces import (
    MetricError,
    default_extractor,
    distance_label,
    extractor_digest,
    feature_dimension,
    metric_label,
)

SETS = {"digits": digits_split, "patches": photo_patches}
SPACES = [("digits", "digits-cnn"), ("patches", "patches-cnn"), ("patches", "cifar-cnn")]
CIFAR = SHARED / "data/cifar10-jpeg.tar.xz"


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
        ("cifar-cnn", (3, 32, 32)),
        ("cifar-cnn", (3, 16, 21)),
        ("cifar-cnn", (1, 8, 8)),
    ],
)
def test_other_sizes_are_taken(extractor, shape):
    features = extract_features(uniform_noise_samples(shape, 3, 0), extractor)
    assert features.shape == (3, feature_dimension(extractor)) and np.isfinite(features).all()


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
        ("resnet", np.zeros((2, 3, 8, 8), np.uint8), "resnet: unknown; known are cifar-cnn, "),
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
    assert default_extractor("cifar10", 3) == default_extractor("cifar10-jpeg", 3) == "cifar-cnn"
    assert default_extractor("cifar100", 3) == "patches-cnn"
    assert default_extractor("cifar10", 3, "w.pth") == "inception-v3-compat"
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
    assert len(digests) == len(extractors.EXTRACTORS) == 3
    with pytest.raises(MetricError, match="needs weights; give torch-fidelity"):
        extractor_digest("inception-v3-compat")
    for name in extractors.EXTRACTORS:
        assert (extractors.WEIGHTS / f"{name}.safetensors").stat().st_size < 500_000
    (tmp_path / "w").write_bytes(b"junk")
    with pytest.raises(CorruptFile, match="no weights for digits-cnn"):
        extract_features(
            np.zeros((1, 1, 8, 8), np.uint8), "digits-cnn", weights_path=tmp_path / "w"
        )


# --- CIFAR-10 itself ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar_test():
    """Every tenth test image of the JPEG copy with its label."""
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR} is not there")
    listed = list_images(CIFAR)
    names = [name for name in listed if name.startswith("test/")][::10]
    read = read_images(CIFAR, listed, {"train": [], "test": names}, Square(size=32), 0)
    images = {names[index]: image.decode() for _, index, image in read}
    _, labels = np.unique([name.split("/")[1] for name in names], return_inverse=True)
    return np.stack([images[name] for name in names]), labels


@pytest.mark.slow
def test_cifar_cnn_knows_unseen_images(cifar_test):
    images, labels = cifar_test
    logits = extract(images, "cifar-cnn").logits
    assert (logits.argmax(axis=1) == labels).mean() > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_stronger_corruption_of_cifar10_is_farther(cifar_test, kind):
    assert_growing_with_corruption(cifar_test[0], "cifar-cnn", kind)


@pytest.mark.slow
def test_dropped_classes_of_cifar10_are_seen(cifar_test):
    images, labels = cifar_test
    assert_growing_with_dropped_classes(images, labels, "cifar-cnn", (10, 8, 6, 4, 2, 1))


# --- orderings ------------------------------------------------------------------------------------


def assert_growing_with_dropped_classes(images, labels, extractor, kept) -> None:
    """Without the images of some classes a set is the farther from all, the more they are."""
    reference = statistics(images, extractor)
    values = [frechet_distance(reference, statistics(images[labels < n], extractor)) for n in kept]
    assert all(np.diff(values) > 0), values


def test_dropped_digits_are_seen():
    images, labels = digits_split("train")
    assert_growing_with_dropped_classes(images, labels, "digits-cnn", (10, 8, 6, 4, 2, 1))


@pytest.mark.parametrize("extractor", ["patches-cnn", "cifar-cnn"])
def test_dropped_parts_of_photographs_are_seen(extractor):
    images, places = photo_patches("train")
    bands = places[:, 0] * 4 + places[:, 1] // 53  # four bands a photograph
    assert_growing_with_dropped_classes(images, bands, extractor, (99, 6, 4, 2, 1))


@pytest.mark.parametrize(("name", "extractor"), SPACES)
def test_better_samples_are_nearer(name, extractor):
    """Real halves << test split < pixel Gaussian < uniform noise."""
    train, test = SETS[name]("train")[0], SETS[name]("test")[0]
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


def assert_growing_with_corruption(images, extractor, kind) -> None:
    """The noisier or the more blurred the images, the farther they are from the clean ones."""
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


@pytest.mark.parametrize(("name", "extractor"), SPACES)
@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_stronger_corruption_is_farther(name, extractor, kind):
    assert_growing_with_corruption(SETS[name]("train")[0][:800], extractor, kind)
