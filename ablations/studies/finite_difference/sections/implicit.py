"""How auto-encoders with implicit encoders fare."""

from __future__ import annotations

from ablations.reporting.image_grids import Panel, draw_panels, enlargement, tile
from ablations.reporting.pictures import Picture
from ablations.reporting.table import Table
from ablations.reporting.wording import joined, number
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.rows import (
    Pick,
    Quantity,
    Records,
    conditions_of,
    over_seeds,
    paired,
    said,
    settings_of,
    skipped_rows,
    table_of,
)
from ablations.studies.finite_difference.sections.wording import (
    IMAGE_NAMES,
    OBJECTIVE_NAMES,
)
from ablations.studies.finite_difference.trials import (
    IMPLICIT_MODELS,
    IMPLICIT_OBJECTIVES,
)
from scorekit.files import load_array


def implicit_comparisons(results: TrialResults) -> Records:
    """FD-SSM against SSM, in every figure of either auto-encoder."""
    records: Records = []
    names = {
        "reconstruction": "reconstruction",
        "bound": "NLL bound",
        "distance": "FD[digits-cnn]",
        "latent_distance": "latents' distance",
        "seconds": "seconds of training",
        "score_seconds": "seconds of the score's training",
    }
    assert names.keys() == IMPLICIT_COLUMNS.keys()
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            sides = [
                results.done("implicit", dataset=dataset, model=model, objective=name)
                for name in ("ssm", "fd_ssm")
            ]
            picks: dict[str, Quantity] = {
                quantity: lambda result, key=key: result[key]  # type: ignore[misc]
                for key, quantity in names.items()
                if all(r[key] is not None for side in sides for r in side.values())
            }
            records += paired(("ssm", "fd_ssm"), sides, picks, where=f", {model.upper()}, {title}")
    return records


_COLUMNS, _WANTED_PX = 12, 56


def implicit_picture(results: TrialResults) -> Picture | None:
    """Decoded samples of the prior, of each auto-encoder by SSM and by FD-SSM."""
    rows = []
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            done = {
                objective: {
                    entry.seed: entry.directory
                    for entry in results.of(
                        "implicit", dataset=dataset, model=model, objective=objective
                    )
                    if entry.result is not None
                }
                for objective in IMPLICIT_OBJECTIVES
            }
            # The latents are the seed's.
            common = set.intersection(*(set(found) for found in done.values()))
            row = []
            for objective, found in done.items():
                if found:
                    seed = min(common or found)
                    images = load_array(found[seed] / "samples.npy")
                    factor = enlargement(images.shape[-1], _WANTED_PX)
                    heading = f"{model.upper()}, {title}, {OBJECTIVE_NAMES[objective]}"
                    grid = tile(images, _COLUMNS, factor=factor)
                    row.append(Panel(heading=heading, note=f"seed {seed}", image=grid))
            if row:
                rows.append(row)
    if not rows:
        return None
    note = f"budget “{results.plan.budget}”, grid “{results.plan.grid}”"
    return Picture(
        name="implicit_samples",
        title="Decoded samples",
        caption="Latents from N(0, I), decoded; the same latents in panels of the same seed. "
        f"{conditions_of(results, ['implicit'])}",
        alt="Grids of decoded digits for VAE and WAE by SSM and FD-SSM",
        figure=draw_panels(rows, note, what="samples"),
    )


def implicit_table(results: TrialResults) -> Table:
    """VAE and WAE with implicit encoders by the objective of their latents' score."""
    records = []
    for dataset, title in IMAGE_NAMES.items():
        for model in IMPLICIT_MODELS:
            for objective in IMPLICIT_OBJECTIVES:
                entries = results.of("implicit", dataset=dataset, model=model, objective=objective)
                if not entries:
                    continue
                picks: dict[str, Pick] = {
                    name: lambda result, name=name: result[name]  # type: ignore[misc]
                    for name in IMPLICIT_COLUMNS
                }
                group = {"group": f"{model.upper()}, {title}"}
                record = {"method": OBJECTIVE_NAMES[objective]} | over_seeds(entries, picks)
                records.append(group | record)
        records += skipped_rows(results, f"implicit/{dataset}", title)
    s = settings_of(results, "implicit")
    return table_of(
        results,
        "implicit",
        "Auto-encoders with implicit encoders",
        "The entropy's gradient from a score network of the latents, trained by SSM or FD-SSM "
        f"(ε = {said(s, 'epsilon')}) with the same noise and directions; mean ± sample standard "
        "deviation over seeds. Reconstruction: cross-entropy of held-out images, summed over "
        "pixels. NLL bound: importance-weighted, of the VAE, a Gaussian fitted to the encoder's "
        "samples as proposal. FD[digits-cnn]: of "
        f"{said(s, 'samples')} decoded samples of the prior from the training images; fewer have "
        f"a higher one.{_held_out(results)} "
        "Latents: Fréchet distance of held-out images' latents from N(0, I) themselves. "
        f"{said(s, 'latent_dim')} latent dimensions, {said(s, 'iterations')} rounds of "
        f"{said(s, 'batch_size')}, each of {said(s, 'score_steps')} steps of the score network and "
        f"one of the auto-encoder, which begins after {said(s, 'warm_up')} rounds; RMSProp at "
        f"{said(s, 'score_learning_rate')} and {said(s, 'learning_rate')}.",
        records,
        IMPLICIT_COLUMNS,
    )


IMPLICIT_COLUMNS = {
    "reconstruction": "Reconstruction, nats ↓",
    "bound": "NLL bound, nats ↓",
    "distance": "FD[digits-cnn] ↓",
    "latent_distance": "Latents ↓",
    "seconds": "Time",
    "score_seconds": "of the score",
}


def _held_out(results: TrialResults) -> str:
    """The distance of held-out images themselves, which is of their number, by data set."""
    words = []
    for dataset, title in IMAGE_NAMES.items():
        done = [e.result for e in results.of("implicit", dataset=dataset) if e.result is not None]
        if done:
            of = f"{number(done[0]['n_held_out'])} held-out images of {title}"
            words.append(f"the {of} have {number(done[0]['held_out_distance'])}")
    return f" For scale, {joined(words, '; ')}." if words else ""
