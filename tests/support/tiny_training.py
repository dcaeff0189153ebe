"""A training run of seconds: 24 iterations, four snapshots."""

from scorekit.training.settings import TrainSettings

SETTINGS = TrainSettings(
    architecture="32-64",
    width=4,
    conditional=False,
    sigma_begin=5,
    sigma_end=0.05,
    n_levels=8,
    iterations=24,
    batch_size=8,
    learning_rate=1e-3,
    snapshot_interval=6,
    test_interval=4,
)
