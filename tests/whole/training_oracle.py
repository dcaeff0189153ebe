"""A training run by straight-line code: the numbers that a Trainer must come to, to rounding.

Nothing but the network's class is shared with what is checked, and that without its normaliser's
own derivative (``plain_operations``). Random words are those of the Random123 paper (Salmon et al.
2011, Sec. 3.3: Philox-4x32-10) for the key (seed's low word, its high word) and the counter
(q, step, index in the batch, purpose); an array of D elements has Q = ceil(D / 4) counters, and
element p is word p // Q of counter p % Q.
"""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import torch

from kernels.dispatch import plain_operations
from scorekit.models.score_network import ScoreNetwork

NOISE, LEVEL, FLIP, DEQUANTISATION, PROJECTION = 2, 3, 4, 5, 7
TEST_STEP = 0xFFFFFFFF


def philox(counter, key):
    """Philox-4x32-10 on uint64 arrays that hold 32-bit words."""
    x0, x1, x2, x3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1, low, half = key[0], key[1], np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        left, right = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (right >> half) ^ x1 ^ np.uint64(k0), right & low
        x2, x3 = (left >> half) ^ x3 ^ np.uint64(k1), left & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


class Draws:
    """What is drawn for one batch at one step."""

    def __init__(self, seed, step, shape):
        self.seed, self.step, self.shape = seed, step, shape

    def words(self, purpose, size):
        q, index = np.meshgrid(np.arange(-(-size // 4)), np.arange(self.shape[0]))
        counter = (q, np.full_like(q, self.step), index, np.full_like(q, purpose))
        return philox(counter, (self.seed % 2**32, self.seed // 2**32))

    def cells(self, purpose):
        """The centres of 2**24 equal cells of (0, 1), one for each word."""
        words = self.words(purpose, int(np.prod(self.shape[1:])))
        return [((w >> np.uint64(8)).astype(np.float64) + 0.5) / 2**24 for w in words]

    def array(self, parts):
        flat = np.concatenate(parts, axis=1)[:, : int(np.prod(self.shape[1:]))]
        return torch.tensor(flat, dtype=torch.float32).reshape(self.shape)

    def uniform(self, purpose):
        return self.array(self.cells(purpose))

    def normal(self, purpose):
        """Box and Muller's pairs: cosine and sine of the words (0, 1), then of (2, 3)."""
        u0, v0, u1, v1 = self.cells(purpose)
        polar = [(np.sqrt(-2 * np.log(u)), 2 * np.pi * v) for u, v in ((u0, v0), (u1, v1))]
        return self.array([r * part(angle) for r, angle in polar for part in (np.cos, np.sin)])

    def integers(self, purpose, high):
        first = self.words(purpose, 1)[0][:, 0]
        return torch.tensor(((first * np.uint64(high)) >> np.uint64(32)).astype(np.int64))


def sums(a):
    return a.flatten(1).sum(dim=1)


def noise_scales(s, sigmas, draws, levels, weights):
    """The scale of each image and how the network is told it, and the weight of its loss."""
    if levels == "ladder":
        level = draws.integers(LEVEL, len(sigmas))
        sigma, weight, tell = sigmas[level], 1.0, lambda network, x: network(x, level)
        if weights == "min_snr":  # min(SNR, 5) in place of SNR, the squared inverse of the noise
            snr = 1 / (2 * sigma) ** 2
            weight = snr.clamp(max=5) / snr
        return sigma, tell, weight
    single = Draws(draws.seed, draws.step, (draws.shape[0], 1))
    if levels == "log_uniform":
        u = single.uniform(LEVEL)[:, 0]
        sigma, weight = s.sigma_end ** (1 - u) * s.sigma_begin**u, 1.0
    else:  # ln sigma ~ N(-1.2, 1.2^2) of images twice as bright, whose deviation is 0.5
        twice = torch.exp(1.2 * single.normal(LEVEL)[:, 0] - 1.2)
        # Theirs, of ||D - x||^2 = sigma^2 ||sigma s + z||^2.
        weight = twice**2 * (twice**2 + 0.25) / (0.5 * twice) ** 2
        sigma = twice / 2
    weight = 1.0 if weights == "equal" else weight
    return sigma, lambda network, x: network.score(x, sigma), weight


def total_loss(
    network, s, sigmas, images, step, *, objective, flip, levels="ladder", weights="own"
):
    """The sum over the batch of sigma^2 times the objective at x + sigma n."""
    draws, x = Draws(s.seed, step, images.shape), torch.tensor(images, dtype=torch.float32)
    x = (x + draws.uniform(DEQUANTISATION)) / 256 if s.dequantisation == "uniform" else x / 255
    if flip:
        x = torch.where(draws.integers(FLIP, 2).reshape(-1, 1, 1, 1) == 1, x.flip(-1), x)
    scales, tell, own_weight = noise_scales(s, sigmas, draws, levels, weights)
    n, sigma = draws.normal(NOISE), scales.reshape(-1, 1, 1, 1)
    weight, dim = own_weight * scales**2, x[0].numel()
    x = (x + sigma * n).requires_grad_(objective in ("exact_sm", "ssm", "ssm_vr"))

    def score(at):
        at = at.contiguous(memory_format=torch.channels_last)
        reduced = torch.autocast("cpu", torch.bfloat16, enabled=s.precision == "bf16")
        with reduced, plain_operations():
            return tell(network, at).float()

    if objective == "dsm":
        return (weight * sums((score(x) + n / sigma) ** 2) / 2).sum()
    if objective == "exact_sm":
        found = score(x)
        pixels = found.flatten(1).sum(dim=0)
        rows = [torch.autograd.grad(p, x, create_graph=True)[0].flatten(1) for p in pixels]
        return (weight * (sum(rows[i][:, i] for i in range(dim)) + sums(found**2) / 2)).sum()
    v = torch.where(draws.uniform(PROJECTION) < 0.5, -1.0, 1.0)
    v = v if s.projection == "rademacher" else draws.normal(PROJECTION)
    norm = sums(v**2).sqrt().reshape(-1, 1, 1, 1)
    if s.projection == "sphere":
        v, norm = v * dim**0.5 / norm, dim**0.5
    if objective in ("ssm", "ssm_vr"):
        mean = score(x)
        curvature = sums(v * torch.autograd.grad((mean * v).sum(), x, create_graph=True)[0])
    else:
        epsilon = s.fd_epsilon or dim**0.5 * (sigma / 5).clamp(max=0.02)
        plus, minus = score(x + epsilon * v / norm), score(x - epsilon * v / norm)
        mean, curvature = (plus + minus) / 2, sums(norm / (2 * epsilon) * v * (plus - minus))
    square = sums(mean**2) if objective.endswith("_vr") else sums(v * mean) ** 2
    return (weight * (curvature + square / 2)).sum()


def train(s, train_images, test_images):
    """What settings make of uint8 images (N, C, H, W); test losses are (iteration, loss)."""
    ratio = (s.sigma_end / s.sigma_begin) ** (np.arange(s.n_levels) / (s.n_levels - 1))
    sigmas = torch.tensor(s.sigma_begin * ratio, dtype=torch.float32)
    how = {"conditional": s.conditional, "channels": train_images.shape[1], "width": s.width}
    how["conditioning"] = s.conditioning
    with torch.random.fork_rng():
        torch.manual_seed(s.seed)
        network = ScoreNetwork(s.architecture, sigmas, **how)
    # As the trainer's: with another layout in memory bfloat16 products are rounded differently.
    averaged = deepcopy(network.to(memory_format=torch.channels_last))
    others = {name: deepcopy(averaged) for name in s.ema_profiles}
    weights = list(network.parameters())
    state = [(w, *(torch.zeros_like(w) for _ in range(3))) for w in weights]
    epochs, n = -(-s.iterations * s.batch_size // len(train_images)), len(train_images)
    streams = [np.random.Generator(np.random.Philox(key=[s.seed, e])) for e in range(epochs)]
    order = np.concatenate([stream.permutation(n) for stream in streams])
    run = SimpleNamespace(raw={}, ema={}, others={}, losses=[], test_losses=[])
    for t in range(1, s.iterations + 1):
        images = train_images[order[(t - 1) * s.batch_size : t * s.batch_size]]
        own = {"objective": s.objective, "flip": s.flip}
        own |= {"levels": s.noise_levels, "weights": s.loss_weights}
        total = total_loss(network, s, sigmas, images, t - 1, **own)
        gradients = torch.autograd.grad(total / s.batch_size, weights)
        run.losses.append(total.item() / s.batch_size)
        with torch.no_grad():
            for (w, m, v, v_max), g in zip(state, gradients, strict=True):
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                v_max.copy_(torch.maximum(v_max, v) if s.amsgrad else v)
                scale = (v_max / (1 - 0.999**t)).sqrt() + s.adam_eps
                w -= s.learning_rate * (m / (1 - 0.9**t)) / scale
            for a, w in zip(averaged.parameters(), weights, strict=True):
                a.copy_(s.ema_momentum * a + (1 - s.ema_momentum) * w)
            for name, other in others.items():
                kind, number = name.split(":")
                if kind == "power":  # sqrt(g / ((g + 1)^2 (g + 2))) = 0.1 for this g
                    assert number == "0.10"
                    beta = (1 - 1 / t) ** 7.9372039
                else:
                    beta = min(float(number), (1 + t) / (10 + t))
                for a, w in zip(other.parameters(), weights, strict=True):
                    a.copy_(beta * a + (1 - beta) * w)
            if t % s.test_interval == 0:
                shown, dsm = test_images[: s.batch_size], {"objective": "dsm", "flip": False}
                total = total_loss(averaged, s, sigmas, shown, TEST_STEP, **dsm)
                run.test_losses.append((t, total.item() / len(shown)))
        if t % s.snapshot_interval == 0 or t == s.iterations:
            run.raw[t], run.ema[t] = (deepcopy(x.state_dict()) for x in (network, averaged))
            run.others |= {(n, t): deepcopy(x.state_dict()) for n, x in others.items()}
    return run
