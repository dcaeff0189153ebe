"""Every number of a finished grid computed again from its files, as the papers write it down.

Song & Ermon 2020 (NCSNv2) is "the paper". Straight-line numpy, scipy and plain torch; of the code
under test there is only the network's class, the stored data and the extractors' modules.
"""

import hashlib

import numpy as np
import torch
from grid_files import weights
from scipy.optimize import brentq
from scipy.spatial.distance import cdist, pdist
from scipy.special import logsumexp, ndtr

from scorekit.metrics.extractors import EXTRACTORS
from scorekit.models.score_network import ScoreNetwork

LANGEVIN, INITIAL, PERTURBATION, NOISE_LEVEL, DEQUANTISATION = 0, 1, 2, 3, 5
TEST_STEP = 2**32 - 1  # the test loss's noise: a step that no iteration has


# --- noise ----------------------------------------------------------------------------------------


def words(seed, index, step, size, stream):
    """Philox-4x32-10 (Salmon et al. 2011): uint64 (4, n, Q), counter (q, step, index, stream)."""
    n_counters = -(-size // 4)
    c = [np.broadcast_to(np.uint64(0), (len(index), n_counters))] * 4
    c[0], c[1] = c[0] + np.arange(n_counters, dtype=np.uint64), c[1] + np.uint64(step)
    c[2], c[3] = c[2] + np.asarray(index, np.uint64)[:, None], c[3] + np.uint64(stream)
    key, low = [np.uint64(seed % 2**32), np.uint64(seed >> 32)], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(q >> np.uint64(32)) ^ c[1] ^ key[0], q & low, (p >> np.uint64(32)) ^ c[3] ^ key[1]]
        c.append(p & low)
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c)


def uniforms(seed, index, step, shape, stream):
    """Centres of 2^24 cells of (0, 1), float64 (n, *shape); element p is word p // Q of p % Q."""
    size = int(np.prod(shape))
    u = ((words(seed, index, step, size, stream) >> np.uint64(8)) + 0.5) / 2**24
    return u.transpose(1, 0, 2).reshape(len(index), -1)[:, :size].reshape(len(index), *shape)


def normals(seed, index, step, shape, stream=LANGEVIN):
    """Box & Muller 1958 of words (0, 1) and (2, 3), float64 (n, *shape)."""
    size = int(np.prod(shape))
    u = ((words(seed, index, step, size, stream) >> np.uint64(8)) + 0.5) / 2**24
    radius, angle = np.sqrt(-2 * np.log(u[::2])), 2 * np.pi * u[1::2]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(4, len(index), -1)
    return z.transpose(1, 0, 2).reshape(len(index), -1)[:, :size].reshape(len(index), *shape)


# --- noise scales and step sizes ------------------------------------------------------------------


def technique_1(images):
    """The largest distance between two training images with pixels in [0, 1]."""
    return pdist(images.reshape(len(images), -1) / 255).max()


def technique_2(first, last, dim, coverage):
    """The number of noise scales whose neighbours overlap by ``coverage`` (Sec. 3.2)."""

    def overlap(gamma):
        shift = np.sqrt(2 * dim) * (gamma - 1)
        return ndtr(shift + 3 * gamma) - ndtr(shift - 3 * gamma)

    gamma = brentq(lambda g: overlap(g) - coverage, 1, 9)
    return round(1 + np.log(first / last) / np.log(gamma))


def technique_4(gamma, last, n_steps):
    """The step size that minimises |s_T^2 / sigma_i^2 - 1| (Eq. 4)."""
    eps = last**2 * np.geomspace(1e-6, 2, 2_000_001)[:-1]
    rate = eps / last**2
    fixed = 2 * eps / (last**2 - last**2 * (1 - rate) ** 2)
    return eps[np.abs((1 - rate) ** (2 * n_steps) * (gamma**2 - fixed) + fixed - 1).argmin()]


def step_size(cell, sigmas):
    """Technique 4, or the rule made for a consistent row: a ladder refined to T steps a scale."""
    gamma, n_steps = sigmas[0] / sigmas[1], cell["n_steps_each"]
    if cell["sampler"] == "consistent":
        return min(1.4 * (1 - gamma ** (-1 / n_steps)), 1) * sigmas[-1] ** 2
    return technique_4(gamma, sigmas[-1], n_steps)


# --- samples --------------------------------------------------------------------------------------


def score_of(network, ladder, bf16):
    """Return s(x, i) along a ladder: the network's own i-th score, or Technique 3's s(x)/sigma."""

    def score(x, i):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = network.features(x, torch.full((len(x),), i))
        return y.float() if network.conditional else y.float() / float(ladder[i])

    return score


def tensor(array):
    return torch.from_numpy(np.asarray(array, np.float32))


def annealed(score, sigmas, eps, n_steps, noise, x):
    """Algorithm 1: return x_T without and with the denoising step."""
    t = 0
    for i, sigma in enumerate(sigmas):
        alpha = eps * sigma**2 / sigmas[-1] ** 2
        for _ in range(n_steps):
            x = x + alpha * score(x, i) + np.sqrt(2 * alpha) * noise(t)
            t += 1
    last = len(sigmas) - 1
    return x, x + sigmas[-1] ** 2 * score(x, last)


def consistent(score, sigmas, eps, noise, x):
    """Jolicoeur-Martineau et al. 2020, Algorithm 2; its last step adds no noise."""
    eta = eps / sigmas[-1] ** 2
    for i in range(len(sigmas) - 1):
        added = sigmas[i + 1] ** 2 - (1 - eta) ** 2 * sigmas[i] ** 2
        x = x + eta * sigmas[i] ** 2 * score(x, i) + np.sqrt(max(added, 0)) * noise(i)
    move = sigmas[-1] ** 2 * score(x, len(sigmas) - 1)
    return x + eta * move, x + move


def network_of(grid, cell, iteration, kind=None):
    """The network of a snapshot: averaged weights with Technique 5, else the raw ones."""
    train = cell["train"]
    sigmas = np.geomspace(train["sigma_begin"], train["sigma_end"], train["n_levels"])
    network = ScoreNetwork(
        train["architecture"],
        tensor(sigmas),
        conditional=not cell["variant"]["conditioning"],
        channels=cell["data"]["channels"],
        width=train["width"],
    )
    path = grid.train(cell).folder / f"snapshot-{iteration:07d}.pt"
    network.load_state_dict(torch.load(path, weights_only=True)[kind or weights(cell)])
    return network.eval()


def draw(grid, cell, iteration, index, bf16=False, mixing=None):
    """Samples of a snapshot as uint8, {denoise: (n, C, H, W)}; mixing is (seed, angles)."""
    train, data, seed = cell["train"], cell["data"], cell["seed"]
    shape = (data["channels"], data["image_size"], data["image_size"])
    n_levels, n_steps = cell["sampling_levels"], cell["n_steps_each"]
    sigmas = np.geomspace(train["sigma_begin"], train["sigma_end"], n_levels)
    eps = step_size(cell, sigmas) if cell["variant"]["noise_scales"] else 2e-5  # Table 4

    def noise(t):
        z = normals(seed, index, t, shape)
        if mixing is not None:
            other, angle = normals(mixing[0], index, t, shape), mixing[1].reshape(-1, 1, 1, 1)
            z = np.cos(angle) * z + np.sin(angle) * other
        return tensor(z)

    x = tensor(uniforms(seed, index, 0, shape, INITIAL))
    if cell["sampler"] == "consistent":
        finer = (n_levels - 1) * n_steps + 1
        sigmas = np.geomspace(train["sigma_begin"], train["sigma_end"], finer)
        score = score_of(network_of(grid, cell, iteration), sigmas, bf16)
        ends = consistent(score, sigmas, eps, noise, x)
    else:
        score = score_of(network_of(grid, cell, iteration), sigmas, bf16)
        ends = annealed(score, sigmas, eps, n_steps, noise, x)
    both = [(255 * x.clamp(0, 1)).round().to(torch.uint8).numpy() for x in ends]
    return dict(zip((False, True), both, strict=True))


def test_loss(grid, cell, iteration):
    """1/2 ||sigma s(x + sigma z, sigma) + z||^2 of averaged weights on the first test images."""
    train, seed = cell["train"], cell["seed"]
    x = grid.data(cell["data"]["store"]).test[: train["batch_size"]].astype(np.float64)
    index, shape = np.arange(len(x)), x.shape[1:]
    u = uniforms(seed, index, TEST_STEP, shape, DEQUANTISATION)
    x = (x + u) / 256 if train["dequantisation"] == "uniform" else x / 255
    sigmas = np.geomspace(train["sigma_begin"], train["sigma_end"], train["n_levels"])
    word = words(seed, index, TEST_STEP, 1, NOISE_LEVEL)[0, :, 0]
    level = ((word * np.uint64(len(sigmas))) >> np.uint64(32)).astype(np.int64)
    sigma, z = (
        sigmas[level].reshape(-1, 1, 1, 1),
        normals(seed, index, TEST_STEP, shape, PERTURBATION),
    )
    with torch.no_grad():
        network = network_of(grid, cell, iteration, "ema")
        score = network(tensor(x + sigma * z), torch.from_numpy(level)).numpy()
    return 0.5 * ((sigma * score + z) ** 2).sum((1, 2, 3)).mean()


# --- metrics --------------------------------------------------------------------------------------


_EXTRACTED = {}


def features(images, extractor):
    """Return features and logits of uint8 images, from the extractor's module."""
    key = hashlib.sha256(images.tobytes() + extractor.encode()).hexdigest()
    if key not in _EXTRACTED:
        kind = EXTRACTORS[extractor]
        module = kind(extractor, list(kind.get_provided_features_list()))
        parts = [module(part) for part in torch.from_numpy(np.array(images)).split(256)]
        _EXTRACTED[key] = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    return _EXTRACTED[key]


def frechet(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S = X'X / (n - 1) the root's trace is the nuclear norm of X_a X_b' / sqrt(..), which is
    exact for singular S too, as scipy's sqrtm is not.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    x, y = (a - a.mean(0)) / np.sqrt(len(a) - 1), (b - b.mean(0)) / np.sqrt(len(b) - 1)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * root


def inception_score(logits, parts=10):
    """Mean and deviation of exp E KL(p(y|x) || p(y)) over parts, of rows shuffled as by default."""
    logits = logits.astype(np.float64)[np.random.RandomState(2020).permutation(len(logits))]
    scores, n = [], len(logits)
    for i in range(parts):
        part = logits[i * n // parts : (i + 1) * n // parts]
        log_p = part - logsumexp(part, axis=1, keepdims=True)
        divergence = np.exp(log_p) * (log_p - np.log(np.exp(log_p).mean(0)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.mean(scores), np.std(scores)


def kernel_distance(fake, real, seed, subsets=100):
    """KID: the unbiased squared MMD with (x.y / d + 1)^3 over random subsets."""
    fake, real = fake.astype(np.float64), real.astype(np.float64)
    random, m, d = np.random.RandomState(seed), min(1000, len(fake), len(real)), fake.shape[1]
    found = []
    for _ in range(subsets):
        x = fake[random.choice(len(fake), m, replace=False)]
        y = real[random.choice(len(real), m, replace=False)]
        xx, xy, yy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (x, y), (y, y)))
        within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1))
        found.append(within - 2 * xy.mean())
    return np.mean(found), np.std(found)


def share_within(points, members, k=3):
    """The share of points within some member's distance to its k-th nearest other member."""
    radius = np.sort(cdist(members, members))[:, k]  # column 0 is the member itself
    return (cdist(points, members) <= radius).any(1).mean()


def density_coverage(fake, real, k=5):
    """Naeem et al. 2020: balls of reals that hold a fake / k, and reals with a fake in theirs."""
    inside = cdist(fake, real) <= np.sort(cdist(real, real))[:, k]
    return inside.sum(1).mean() / k, inside.any(0).mean()


def interval(fake, real, seed, resamples=200):
    """Standard error, low and high of the distance: resamples' quantiles moved to its centre."""
    random, n = np.random.Generator(np.random.Philox(seed)), len(fake)
    found = np.array([frechet(fake[random.integers(n, size=n)], real) for _ in range(resamples)])
    low, high = np.quantile(found, [0.025, 0.975]) - found.mean() + frechet(fake, real)
    return found.std(ddof=1), max(0.0, low), high


def infinite_n(fake, real, seed):
    """The intercept of distances of subsets over 1 / n (Chong & Forsyth 2020)."""
    random, (n, d) = np.random.Generator(np.random.Philox(seed)), fake.shape
    first = max(2, n // 10, min(4 * d, n // 2))
    sizes = np.unique(np.rint(1 / np.linspace(1 / first, 1 / n, 15)).astype(int))
    found = [frechet(fake[random.permutation(n)[:size]], real) for size in sizes]
    return np.polyfit(1 / sizes, found, 1)[1]


def neighbours(queries, mirrored, train):
    """Indices, distances and flips (n, 8) of the nearest; flips of a query taken as itself."""
    both = np.stack([cdist(queries, train), cdist(mirrored, train)])
    order = both.min(0).argsort(1, kind="stable")[:, :8]
    nearest = np.take_along_axis(both.min(0), order, 1)
    return order, nearest, np.take_along_axis(both.argmin(0) > 0, order, 1)


def reference_rows(grid, cell):
    """Distances of uniform noise, of a Gaussian fitted to training pixels and of held-out images.

    Held out is the split that is not measured against.
    """
    data, n = grid.data(cell["data"]["store"]), cell["n_final"]
    shape, other = data.train.shape[1:], {"train": "test", "test": "train"}[cell["reference"]]
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (n, *shape), dtype=np.uint8)
    pixels = data.train.reshape(len(data.train), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(pixels.T))
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    z = np.random.Generator(np.random.Philox(0)).standard_normal((n, len(root)))
    gaussian = np.rint((z @ root + pixels.mean(0)).clip(0, 255)).astype(np.uint8)
    images = {
        "uniform noise": noise,
        "Gaussian fitted to the pixels": gaussian.reshape(n, *shape),
        "held-out real images": np.array(getattr(data, other)[:n]),
    }
    space = cell["data"]["extractor"]
    real = features(grid.real(cell, cell["reference"]), space)[0]
    return {name: frechet(features(i, space)[0], real) for name, i in images.items()}
