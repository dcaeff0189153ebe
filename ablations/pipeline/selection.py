"""The snapshots that are chosen, and what is made of them."""

from ablations.engine.stages import Stage, StageStore
from ablations.pipeline.cell import Cell


def selection_samples(cell: Cell) -> list[Stage]:
    """Return the sample stages of every snapshot, by which the best is chosen."""
    return [
        stage
        for iteration in cell.train.snapshot_iterations
        for stage in cell.sample_stages(iteration, final=False)
    ]


def selected_iterations(cell: Cell, store: StageStore) -> dict[bool, int]:
    """Return the snapshot of the smallest selection distance, for each denoise setting.

    A setting is absent while one of its snapshots has no distance yet. The earlier wins a tie.
    """
    chosen = {}
    for denoise in (False, True):
        results = {
            iteration: store.result(cell.distance_stage(iteration, denoise=denoise, final=False))
            for iteration in cell.train.snapshot_iterations
        }
        if all(result is not None for result in results.values()):
            distances = {i: r["distance"] for i, r in results.items() if r is not None}
            chosen[denoise] = min(distances, key=lambda i: (distances[i], i))
    return chosen


def loss_stages(cell: Cell) -> list[Stage]:
    """Return the stages of the losses on training and test images, of every snapshot."""
    return [cell.loss_stage(iteration) for iteration in cell.train.snapshot_iterations]


def seconds_spent(cells: list[Cell], store: StageStore) -> tuple[float, float]:
    """Return the seconds of training and sampling in the finished stages, and of compiling."""
    stages = {cell.train_stage() for cell in cells}
    for cell in cells:
        for iteration in cell.train.snapshot_iterations:
            stages.update(cell.sample_stages(iteration, final=True))
    results = [result for stage in stages if (result := store.result(stage)) is not None]
    working = sum((r.get("training_s") or 0) + r.get("sampling_s", 0) for r in results)
    return working, sum(r["compile_s"] for r in results)


def sample_file(denoise: bool) -> str:
    """Return the file of a sample stage: uint8 (N, C, H, W)."""
    return "denoised.npy" if denoise else "last.npy"
