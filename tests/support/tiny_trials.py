"""Every part of the grid finite-difference, at the smallest settings, and made-up wine."""

from pathlib import Path

import numpy as np

TINY = {
    **{"toy_iterations": 3, "toy_batch_size": 8, "toy_width": 8, "toy_grid": 16, "toy_seeds": 2},
    **{"loss_iterations": 3, "loss_batch_size": 4, "loss_width": 4, "loss_blocks": 1},
    **{"loss_held_out": 4, "loss_evaluations": 3, "loss_seeds": 2, "deep_seeds": 2},
    **{"deep_iterations": 1, "gradient_iterations": 1, "gradient_width": 4},
    **{"gradient_batch_size": 2, "gradient_seeds": 1, "dkef_max_steps": 2, "dkef_inducing": 6},
    **{"dkef_batch_size": 8, "dkef_importance": 300, "dkef_around": 20, "wine_seeds": 2},
    **{"distance_seeds": 2, "distance_iterations": 4, "distance_snapshots": 2},
    **{"distance_batch_size": 2, "distance_width": 2, "distance_n_steps_each": 1},
    **{"distance_samples": 4, "flow_seeds": 2, "flow_iterations": 3, "flow_batch_size": 4},
    **{"flow_width": 4, "flow_held_out": 6, "flow_n_exact": 2, "flow_evaluations": 3},
    **{"implicit_seeds": 2, "implicit_iterations": 3, "implicit_warm_up": 1},
    **{"implicit_batch_size": 4, "implicit_latent_dim": 2, "implicit_width": 4},
    **{"implicit_held_out": 6, "implicit_n_bound": 2, "implicit_samples": 8},
    **{"cost_rounds": 2, "cost_mlp_width": 8, "cost_mlp_batch_size": 2, "cost_conv_width": 4},
    **{"cost_conv_batch_size": 1, "cost_score_width": 2, "cost_score_batch_size": 1},
}
_WINE = (
    "fixed acidity;volatile acidity;citric acid;residual sugar;chlorides;free sulfur dioxide;"
    "total sulfur dioxide;density;pH;sulphates;alcohol;quality"
)


def command(out: Path, *flags: str, **settings: object) -> list[str]:
    pairs = [f"--set={key}={value}" for key, value in (TINY | settings).items()]
    shared = [
        "--grid",
        "finite-difference",
        "--budget",
        "quick",
        "--device",
        "cpu",
        "--executor",
        "inline",
    ]
    return [*shared, "--threads", "1", "--out", str(out), *flags, *pairs]


def wine(folder: Path, n_columns: int = 12) -> Path:
    """Write made-up red wine in UCI's format."""
    header = [f'"{name}"' for name in _WINE.split(";")][:n_columns]
    rows = np.random.default_rng(0).normal(size=(60, n_columns)).round(3)
    lines = [";".join(header), *(";".join(map(str, row)) for row in rows.tolist())]
    (folder / "uci").mkdir(parents=True)
    (folder / "uci" / "winequality-red.csv").write_text("\n".join(lines) + "\n")
    return folder
