"""The headline numbers of finite-difference trials computed again from their files.

Pang et al. 2020 and the authors' response. A trial's folder holds its settings, its result and,
of some, arrays; every comparison is of values of the same seeds.
"""

import json
import math

import numpy as np
import oracle
from scipy import stats
from scipy.special import softmax
from sklearn.datasets import load_digits

NAMES = {"dsm": "DSM", "fd_dsm": "FD-DSM", "ssm": "SSM", "fd_ssm": "FD-SSM", "ssm_vr": "SSM-VR"}
NAMES |= {"fd_ssm_vr": "FD-SSM-VR", "mle": "maximum likelihood"}
NAMES |= {"curvature": "curvature propagation", "approximate": "approximate back-propagation"}


def digits(split):
    """scikit-learn's digits as uint8 (N, 1, 8, 8): 1500 to train of a permutation by Philox(0)."""
    images = load_digits().images[np.random.Generator(np.random.Philox(0)).permutation(1797)]
    images = np.rint(images * (255 / 16)).astype(np.uint8)[:, None]
    return images[:1500] if split == "train" else images[1500:]


class Trials:
    """Every trial below an output folder: (settings, result, folder)."""

    def __init__(self, out):
        self.out, self.all = out, []
        for path in sorted(out.glob("stages/trial/*/result.json")):
            settings = json.loads((path.parent / "settings.json").read_text())
            self.all.append((settings, json.loads(path.read_text())["result"], path.parent))

    def of(self, trial, **settings):
        """(settings, result, folder) of the trials of a kind with these settings, by seed."""
        wanted = {"trial": trial} | settings
        found = [each for each in self.all if wanted.items() <= each[0].items()]
        return sorted(found, key=lambda each: each[0].get("seed", 0))

    def values(self, pick, trial, **settings):
        return [pick(result) for _, result, _ in self.of(trial, **settings)]


_FISHER, _SECONDS = "Fisher divergence from the truth", "seconds of training"


def mixture_score(x):
    """The score of 0.8 N([5, 5], I) + 0.2 N([-5, -5], I) at points, and the density."""
    means = np.array([[5.0, 5.0], [-5.0, -5.0]])
    log = np.log([0.8, 0.2]) - 0.5 * ((x[:, None] - means) ** 2).sum(2) - np.log(2 * np.pi)
    return softmax(log, 1) @ means - x, np.exp(log).sum(1)


def toy(folder):
    """How far apart the two fields are, plain and by density, and how far from the truth."""
    with np.load(folder / "fields.npz") as file:
        points, ssm, fd = (file[name].astype(np.float64) for name in ("points", "ssm", "fd_ssm"))
    truth, density = mixture_score(points)
    apart, size = ((fd - ssm) ** 2).sum(1), (ssm**2).sum(1)
    return {
        "relative_difference": math.sqrt(apart.mean() / size.mean()),
        "relative_difference_weighted": math.sqrt((density @ apart) / (density @ size)),
        "fisher_divergence": {
            name: 0.5 * density @ ((field - truth) ** 2).sum(1) / density.sum()
            for name, field in (("SSM", ssm), ("FD-SSM", fd))
        },
    }


def samples_of(trials, objective, seed):
    """Denoised samples of a distance trial by snapshot, and the seconds of training up to each."""
    found, training = {}, None
    for path in trials.out.glob("stages/sample/*"):
        settings = json.loads((path / "settings.json").read_text())
        (need,) = json.loads((path / "result.json").read_text())["needs"]
        folder = trials.out / "stages" / "train" / need
        train = json.loads((folder / "settings.json").read_text())
        if (train["objective"], train["seed"]) == (objective, seed):
            assert (settings["weights"], settings["seed"]) == ("ema", seed)
            found[settings["iteration"]] = np.load(path / "denoised.npy")
            training = json.loads((folder / "result.json").read_text())["result"]
    return [found[iteration] for iteration in sorted(found)], training["snapshot_s"]


def at_equal_time(curves):
    """Each (seconds, values) at the end of the fastest, on straight lines; NaN before the first."""
    end, found = min(seconds[-1] for seconds, _ in curves), []
    for seconds, values in curves:
        after = next(i for i, s in enumerate(seconds) if s >= end)
        if after == 0 and seconds[0] > end:
            found.append(math.nan)
            continue
        before = max(after - 1, 0)
        span = seconds[after] - seconds[before]
        share = (end - seconds[before]) / span if span else 1.0
        found.append(values[before] + share * (values[after] - values[before]))
    return found


def compared(first, second, ratio=False):
    """Mean, low, high and n of second against first, by Student's t for pairs."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a + b)]
    by_pair = np.array([math.log(b / a) if ratio else b - a for a, b in pairs])
    if len(by_pair) < 2:
        mean = by_pair.mean() if len(by_pair) else math.nan
        values = [mean, math.nan, math.nan]
    else:
        interval = stats.ttest_1samp(by_pair, 0).confidence_interval(0.95)
        values = [by_pair.mean(), interval.low, interval.high]
    return (*(np.exp(values) if ratio else values), len(by_pair))


def comparisons(trials, part):
    """{(group, quantity): (mean, low, high, n)} of a part."""
    return {
        "toy": _toy,
        "loss": _loss,
        "distance": _distance,
        "flow": _flow,
        "implicit": _implicit,
        "epsilon": _epsilon,
    }[part](trials)


def _toy(trials):
    fisher = [toy(folder)["fisher_divergence"] for _, _, folder in trials.of("toy")]
    seconds = trials.values(lambda r: r["seconds"], "toy")
    group, found = "FD-SSM against SSM", {}
    for quantity, values in (
        ("Fisher divergence from the truth", fisher),
        (_SECONDS, seconds),
    ):
        sides = [[each[name] for each in values] for name in ("SSM", "FD-SSM")]
        found[group, quantity] = compared(*sides, ratio=quantity.startswith("seconds"))
    return found


def _loss(trials):
    found = {}
    for objective in ("dsm", "ssm"):
        names = NAMES[objective], "FD-" + NAMES[objective]
        curves = trials.values(lambda r: r["curves"], "loss", objective=objective)
        last = [[c[name]["exact_sm"][-1] for c in curves] for name in names]
        equal = [
            at_equal_time([(c[name]["seconds"], c[name]["exact_sm"]) for name in names])
            for c in curves
        ]
        seconds = [[c[name]["seconds"][-1] for c in curves] for name in names]
        group = f"{names[1]} against {names[0]}"
        found[group, "exact SM at the last iteration"] = compared(*last)
        found[group, "exact SM at equal time"] = compared(*zip(*equal, strict=True))
        found[group, _SECONDS] = compared(*seconds, ratio=True)
    return found


def distances(trials, objective):
    """[(seconds, distances)] of the trials of an objective, by seed, from their samples."""
    curves = []
    train = digits("train")
    real = oracle.features(train, "digits-cnn")[0]
    for settings, _, _ in trials.of("distance", objective=objective):
        samples, seconds = samples_of(trials, objective, settings["seed"])
        fakes = [oracle.features(images, "digits-cnn")[0] for images in samples]
        curves.append((seconds, [oracle.frechet(fake, real) for fake in fakes]))
    return curves


def _distance(trials):
    found = {}
    for one, two in (("ssm_vr", "fd_ssm_vr"), ("dsm", "ssm_vr"), ("dsm", "fd_ssm_vr")):
        first, second = distances(trials, one), distances(trials, two)
        group = f"{NAMES[two]} against {NAMES[one]}"
        last = [[values[-1] for _, values in side] for side in (first, second)]
        found[group, "distance at the last iteration"] = compared(*last)
        seconds = [
            trials.values(lambda r: r["seconds"], "distance", objective=o) for o in (one, two)
        ]
        found[group, _SECONDS] = compared(*seconds, ratio=True)
        equal = [at_equal_time(pair) for pair in zip(first, second, strict=True)]
        found[group, "distance at equal time"] = compared(*zip(*equal, strict=True))
    return found


def _flow(trials):
    found = {}
    for one, two in (
        *(("ssm", "fd_ssm"), ("dsm", "fd_dsm"), ("mle", "ssm"), ("mle", "dsm"), ("mle", "fd_ssm")),
        *(("ssm_vr", "curvature"), ("ssm_vr", "approximate")),
    ):
        group = f"{NAMES[two]} against {NAMES[one]}, digits, 8×8"
        for quantity, pick in (
            ("NLL", lambda r: r["curve"]["nll"][-1]),
            ("exact SM", lambda r: r["exact_sm"]),
            (_SECONDS, lambda r: r["seconds"]),
        ):
            sides = [trials.values(pick, "flow", objective=objective) for objective in (one, two)]
            found[group, quantity] = compared(*sides, ratio=quantity.startswith("seconds"))
    return found


def decoded_distance(folder):
    """The distance of an auto-encoder's samples, where all are kept, from the training images."""
    features = oracle.features(np.load(folder / "samples.npy"), "digits-cnn")[0]
    return oracle.frechet(features, oracle.features(digits("train"), "digits-cnn")[0])


def _implicit(trials):
    quantities = {"reconstruction": "reconstruction", "bound": "NLL bound"}
    quantities |= {"latent_distance": "latents' distance", "seconds": _SECONDS}
    quantities |= {"score_seconds": "seconds of the score's training"}
    found = {}
    for model in ("vae", "wae"):
        group = f"FD-SSM against SSM, {model.upper()}, digits, 8×8"
        sides = [trials.of("implicit", model=model, objective=o) for o in ("ssm", "fd_ssm")]
        decoded = [[decoded_distance(folder) for *_, folder in side] for side in sides]
        found[group, "FD[digits-cnn]"] = compared(*decoded)
        for key, quantity in quantities.items():
            if (model, key) != ("wae", "bound"):
                values = [[result[key] for _, result, _ in side] for side in sides]
                found[group, quantity] = compared(*values, ratio="seconds" in key)
    return found


def _epsilon(trials):
    """Of every epsilon against SSM: {(group, quantity, epsilon): ...}."""
    found = {}
    for name, how in (("broad", "N(0, 4 I)"), ("around", "around the data")):
        for epsilon in (0.1, 0.01):
            key = "DKEF on RedWine", f"NLL, {how}", epsilon
            sides = [
                trials.values(lambda r: r["likelihoods"][name]["nll"], "dkef", epsilon=e)  # noqa: B023
                for e in (None, epsilon)
            ]
            found[key] = compared(*sides)
    for epsilon in (0.01, 0.03, 0.1, 0.3, 1.0):
        sides = [trials.values(lambda r: r["exact_sm"], "deep", epsilon=e) for e in (None, epsilon)]
        found["deep energy on digits", "exact SM", epsilon] = compared(*sides)
    return found


def cost(result):
    """{(objective, way): (median ratio, low, high)} of eager steps to their finite difference's.

    Rounds' own ratios; between order statistics at least 95 % sure, or the range of fewer than six.
    """
    found = {}
    for row in result["rows"]:
        if row["objective"] not in ("dsm", "ssm", "ssm_vr") or row["mode"] != "eager":
            continue
        mine = result["times"].get(f"fd_{row['objective']} finite_difference eager")
        if mine is None:
            continue
        times = result["times"][f"{row['objective']} {row['way']} eager"]
        ratios, n = sorted(np.divide(times, mine)), len(mine)
        rank = max(int(stats.binom.ppf(0.025, n, 0.5)), 1)
        found[row["objective"], row["way"]] = np.median(ratios), ratios[rank - 1], ratios[n - rank]
    return found
