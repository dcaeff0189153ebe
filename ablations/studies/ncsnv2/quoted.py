"""Numbers quoted from Song & Ermon 2020, to stand beside ours, always marked as the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from scorekit.techniques.ladder import Ladder
from scorekit.techniques.table_4 import TABLE_4

TABLE_1 = "paper (Table 1)"
TABLE_6 = "paper (Table 6)"

# Family of data sets -> (model, denoised, Inception score, FID). The scores are text: they carry
# the paper's own spread. The paper's plain "NCSN" row on CIFAR-10 is the one without denoising.
SCORES: dict[str, list[tuple[str, bool, str, float]]] = {
    "CIFAR-10": [
        ("NCSN", False, "8.87 ± .12", 25.32),
        ("NCSN", True, "7.32 ± .12", 29.8),
        ("NCSNv2", False, "8.73 ± .13", 31.75),
        ("NCSNv2", True, "8.40 ± .07", 10.87),
    ],
    "CelebA 64": [
        ("NCSN", False, "", 26.89),
        ("NCSN", True, "", 25.30),
        ("NCSNv2", False, "", 28.86),
        ("NCSNv2", True, "", 10.23),
    ],
}

#: The rows of Table 1 that are not the authors' models: model, Inception score, FID, on CIFAR-10.
OTHER_MODELS: list[tuple[str, str, float]] = [
    ("PixelCNN", "4.60", 65.93),
    ("IGEBM", "6.02", 40.58),
    ("WGAN-GP", "7.86 ± .07", 36.4),
    ("SNGAN", "8.22 ± .05", 21.7),
]

# What the FID of Table 1 was measured with (Appendix B.2).
SCORE_CONDITIONS: dict[str, str] = {
    "CIFAR-10": "against the training data; n not stated",
    "CelebA 64": "n = 10,000 against the test set",
}

# Data set, device, sampling time and training time of NCSNv2 (Table 6; n sampled is not stated).
SPEED: list[tuple[str, str, float, float]] = [
    ("CIFAR-10", "2x V100", 2 * 60.0, 22 * 3600.0),
    ("CelebA 64", "4x V100", 7 * 60.0, 29 * 3600.0),
    ("LSUN church_outdoor 96", "8x V100", 17 * 60.0, 52 * 3600.0),
    ("LSUN bedroom 128", "8x V100", 19 * 60.0, 52 * 3600.0),
    ("LSUN tower 128", "8x V100", 19 * 60.0, 52 * 3600.0),
    ("FFHQ 256", "8x V100", 50 * 60.0, 41 * 3600.0),
]


STEPS_SOURCE = (
    "10,000 samples of the authors' checkpoints with the denoising step, measured by others"
)
# Family of data sets -> (L, T, FID) of the authors' NCSNv2 checkpoints.
STEPS: dict[str, list[tuple[int, int, float]]] = {
    "CIFAR-10": [(25, 1, 46.8), (100, 1, 17.2), (232, 1, 16.0), (232, 3, 12.8), (232, 5, 12.5)],
    "CelebA 64": [(50, 1, 25.0), (250, 1, 13.6), (500, 1, 14.0), (500, 3, 11.3), (500, 5, 9.5)],
}


#: Jolicoeur-Martineau et al. 2020, their repository: CIFAR-10, 5,000 samples, L = 232 from 50 to
#: 0.01, EMA 0.9999. (sampler, n, trained with their adversarial term) -> points (ε, FID without,
#: FID with the denoising step) of a curve: its best, and those nearest to a rule's ε.
STEP_SIZE_SOURCE = "Jolicoeur-Martineau et al. 2020, their repository"
STEP_SIZE_CURVES: dict[tuple[str, int, bool], list[tuple[float, float, float]]] = {
    ("annealed", 1, False): [
        (1.00e-5, 455.7, 455.6),
        (1.28e-5, 110.9, 98.6),
        (1.83e-5, 38.4, 15.6),
        (2.66e-5, 42.4, 21.6),
        (5.00e-5, 82.9, 60.2),
    ],
    ("consistent", 1, True): [
        (3.74e-6, 228.2, 254.7),
        (4.95e-6, 14.7, 15.4),
        (5.13e-6, 14.7, 14.8),
        (5.73e-6, 16.3, 14.3),
        (7.02e-6, 22.3, 14.9),
        (2.86e-5, 56.3, 38.2),
    ],
    ("consistent", 5, True): [
        (7.80e-7, 31.4, 34.0),
        (9.30e-7, 12.7, 13.9),
        (1.03e-6, 13.3, 13.1),
        (1.10e-6, 14.3, 12.9),
        (6.00e-6, 27.2, 15.4),
    ],
    ("consistent", 15, True): [
        (2.53e-7, 34.7, 36.0),
        (3.09e-7, 12.3, 13.3),
        (3.34e-7, 12.6, 12.8),
        (3.58e-7, 13.5, 12.7),
        (4.23e-6, 29.7, 18.1),
    ],
}


def step_rows(dataset: str) -> list[dict[str, object]]:
    """Published distances against L x T for the paper's data set that one of ours stands for."""
    return [
        {
            "variant": f"NCSNv2, {n_levels}×{n_steps}",
            "base": "NCSNv2",
            "sampler": "annealed",
            "ladder": f"{n_levels}×{n_steps}",
            "weights": "EMA",
            "denoise": True,
            "score_evaluations": n_levels * n_steps + 1,
            "label": "FID",
            "distance_mean": fid,
            "distance_std": math.nan,
            "n": "10,000",
            "source": "published",
        }
        for n_levels, n_steps, fid in STEPS.get(family(dataset) or "", [])
    ]


def family(dataset: str) -> str | None:
    """The paper's data set that one of ours stands for (CIFAR-10 or CelebA 64), or None."""
    name = dataset.lower().replace("-", "").replace("_", "")
    if name.startswith("cifar10") and not name.startswith("cifar100"):
        return "CIFAR-10"
    return "CelebA 64" if name.startswith("celeba") else None


def speed_rows() -> list[dict[str, object]]:
    """Rows of Table 6 as the report's timings frame has them; what it does not state is missing."""
    return [
        {
            "dataset": dataset,
            "variant": "NCSNv2",
            "source": TABLE_6,
            "device": device,
            "training_s": training_s,
            "sampling_s": sampling_s,
            "compile_s": math.nan,
            "images_per_s": math.nan,
        }
        for dataset, device, sampling_s, training_s in SPEED
    ]


#: Table 4 itself has neither.
_CITED = "learning rate: App. B.1; EMA: Sec. 5"


def published_hyperparameters() -> Iterator[dict[str, Any]]:
    """Yield Table 4 as published and, for NCSNv2, what Techniques 2 and 4 give from its sigma_1.

    The computed rows use C = 0.5, the paper's recommendation; Table 4's L follow from C = 0.5668.
    """
    for row in TABLE_4:
        printed = row.ladder
        shared = {"dataset": f"{row.dataset} {row.image_size}²", "variant": row.model}
        yield shared | {
            "source": "paper (Table 4)",
            "sigma_1": printed.sigma_begin,
            "L": printed.n_levels,
            "T": printed.n_steps_each,
            "epsilon": printed.step_size,
            "step_rule": printed.step_rule,
            "batch_size": row.batch_size,
            "iterations": row.iterations,
            "learning_rate": 1e-4 if row.model == "NCSNv2" else 1e-3,
            "ema_momentum": 0.999 if row.model == "NCSNv2" else float("nan"),
            "note": "; ".join(filter(None, (_CITED, row.note))),
        }
        if row.model == "NCSN":
            continue
        computed = Ladder.by_techniques(
            printed.sigma_begin, 3 * row.image_size**2, n_steps_each=printed.n_steps_each
        )
        epsilon = printed.by_rule("Technique 4").step_size
        yield shared | {
            "source": "computed, C=0.5",
            "sigma_1": computed.sigma_begin,
            "L": computed.n_levels,
            "T": computed.n_steps_each,
            "epsilon": computed.step_size,
            "step_rule": computed.step_rule,
            "note": f"with the published L, Technique 4 gives epsilon = {epsilon:.3g}; "
            "C = 0.5668 gives the published L",
        }
