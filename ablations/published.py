"""Table 4 as rows of the report: as published, and what the techniques give in its place."""

from collections.abc import Iterator
from typing import Any

from scorekit.presets import TABLE_4
from scorekit.techniques import (
    geometric_sigmas,
    ladder_ratio,
    langevin_step_size,
    n_noise_scales,
    noise_scale_ratio,
)

#: Table 4 itself has neither.
_CITED = "learning rate: App. B.1; EMA: Sec. 5"


def published_hyperparameters() -> Iterator[dict[str, Any]]:
    """Yield Table 4 as published and, for NCSNv2, what Techniques 2 and 4 give from its sigma_1.

    The computed rows use C = 0.5, the paper's recommendation; Table 4's L follow from C = 0.5668.
    """
    for row in TABLE_4:
        dim = 3 * row.image_size**2
        shared = {"dataset": f"{row.dataset} {row.image_size}²", "variant": row.model}
        yield shared | {
            "source": "paper (Table 4)",
            "sigma_1": row.sigma_begin,
            "L": row.n_levels,
            "T": row.n_steps_each,
            "epsilon": row.epsilon,
            "step_rule": "Table 4",
            "batch_size": row.batch_size,
            "iterations": row.iterations,
            "learning_rate": 1e-4 if row.model == "NCSNv2" else 1e-3,
            "ema_momentum": 0.999 if row.model == "NCSNv2" else float("nan"),
            "note": "; ".join(filter(None, (_CITED, row.note))),
        }
        if row.model == "NCSN":
            continue
        n_levels = n_noise_scales(row.sigma_begin, row.sigma_end, noise_scale_ratio(dim))
        gamma = ladder_ratio(geometric_sigmas(row.sigma_begin, row.sigma_end, n_levels))
        published_gamma = ladder_ratio(
            geometric_sigmas(row.sigma_begin, row.sigma_end, row.n_levels)
        )
        epsilon = langevin_step_size(published_gamma, row.sigma_end, row.n_steps_each)
        yield shared | {
            "source": "computed, C=0.5",
            "sigma_1": row.sigma_begin,
            "L": n_levels,
            "T": row.n_steps_each,
            "epsilon": langevin_step_size(gamma, row.sigma_end, row.n_steps_each),
            "step_rule": "Technique 4",
            "note": f"with the published L, Technique 4 gives epsilon = {epsilon:.3g}; "
            "C = 0.5668 gives the published L",
        }
