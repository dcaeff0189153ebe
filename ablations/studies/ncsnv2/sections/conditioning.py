"""Fig. 3: training loss of the two ways to tell a network the noise scale."""

from __future__ import annotations

import pandas as pd

from ablations.reporting.artefacts import Artefact
from ablations.reporting.pictures import Picture, dress, shared_legend, spans_decades
from ablations.reporting.wording import for_figure, joined, number
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.curves import (
    MAX_POINTS,
    SMOOTHING,
    smoothed,
    training_losses,
)
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    variant_colour,
)

#: The same noise scales and training data; only group (3) differs (App. B.2).
METHODS = {"NCSN_1,2,4,5": "conditional normalisation", "NCSNv2": "s(x) / σ"}
_TAIL = 0.1


def conditioning_figure(results: Results) -> Artefact:
    """Smoothed training loss of NCSN_1,2,4,5 and NCSNv2, one panel per data set."""
    frame = conditioning_losses(results)
    # A panel for each objective: losses of two share no axis.
    panes = [
        (dataset, objective)
        for dataset in dataset_order(results)
        for objective in sorted(set(frame[frame["dataset"] == dataset]["objective"])) or [""]
    ]
    figure, panels = new_panels(results, [f"{d}{o}" for d, o in panes], "training run")
    logarithmic = spans_decades(frame["smoothed"])
    for (dataset, objective), axes in zip(panes, panels, strict=False):
        here = frame[(frame["dataset"] == dataset) & (frame["objective"] == objective)]
        for variant, method in METHODS.items():
            curves = here[here["variant"] == variant]
            for index, (_, curve) in enumerate(curves.groupby("seed", dropna=False)):
                thinned = curve.iloc[:: max(1, len(curve) // MAX_POINTS)]
                axes.plot(
                    thinned["iteration"].to_numpy(float),
                    thinned["smoothed"].to_numpy(float),
                    color=variant_colour(variant),
                    linewidth=1.5,
                    label=None if index else for_figure(f"{variant}: {method}"),
                )
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
        dress(
            axes,
            f"training loss ({objective or 'none yet'}), smoothed",
            logarithmic=logarithmic,
            empty=here.empty,
        )
    shared_legend(figure, panels)
    picture = Picture(
        name="conditioning_losses",
        title="Training loss of two noise conditioning methods",
        caption=(
            "Training loss with the noise scale given through conditional normalisation layers "
            "(NCSN_1,2,4,5) and through division of the output by σ (NCSNv2, Technique 3): the "
            "same images and noise scales; learning rate and dequantisation are each network's own "
            "unless set. Smoothed by an exponential moving average with momentum "
            f"{SMOOTHING} over {_kept(frame)}; one line per seed. {_tails(frame)}"
            f"{conditions(results)}"
        ),
        alt="Curves of the training loss of two noise conditioning methods",
        figure=figure,
    )
    return Artefact(shown=picture, frames={picture.name: frame})


def conditioning_losses(results: Results) -> pd.DataFrame:
    """Training losses of the two methods, raw and `smoothed`, per data set, variant and seed."""
    parts = []
    for variant in METHODS:
        losses = training_losses(results, [variant])
        for _, run in losses.groupby(["dataset", "seed", "training"], sort=False, dropna=False):
            run = run.sort_values("iteration")
            run = run.assign(variant=variant, smoothed=smoothed(run["loss"]))
            parts.append(run)
    columns = ["dataset", "variant", "training", "objective", "seed", "iteration", "loss"]
    columns += ["smoothed"]
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts)[columns].reset_index(drop=True)


def _kept(frame: pd.DataFrame) -> str:
    """Which iterations' losses are smoothed: of very many runs, collection keeps a part."""
    keys = ["dataset", "variant", "training", "seed"]
    between = frame.groupby(keys, dropna=False)["iteration"].diff()
    every = between.min()
    return "every iteration" if not every > 1 else f"one iteration in {number(every)}"


def _tails(frame: pd.DataFrame) -> str:
    """What the curves end at, which crossing lines do not show."""
    words = []
    for (dataset, variant, objective), runs in frame.groupby(
        ["dataset", "variant", "objective"], sort=False
    ):
        late = runs["iteration"] > (1 - _TAIL) * runs["iteration"].max()
        words.append(f"{dataset} {variant} ({objective}) {number(runs[late]['loss'].mean(), 4)}")
    return f"Mean over the last tenth of the iterations: {joined(words, '; ')}. " if words else ""
