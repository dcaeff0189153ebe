"""From settings to a cell: what the techniques, Table 4 and the budget leave to be derived."""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablations.pipeline.cell import Cell, with_plugins
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import Variant
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.settings import LADDER_SETTINGS, Settings, step_rule_name
from scorekit.models.conditioning import CONDITIONINGS
from scorekit.models.network_files import NetworkFile, read_network_file
from scorekit.models.score_network import architecture_for, check_image_size, takes_any_scale
from scorekit.sampling.consistent import check_consistent_step_size
from scorekit.sampling.registry import affordable_steps_of, evaluates_between, sampler_kind
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.step_size import SNR, check_step_size
from scorekit.techniques.table_4 import (
    NCSN_LADDER,
    TABLE_4,
    Published,
    default_reference,
    published,
    published_evaluations,
)
from scorekit.training.settings import TrainSettings


def resolve(settings: Settings, variant: Variant, data: DataFacts, seed: int) -> Cell:
    """Return the cell that these settings mean for a variant on a dataset.

    Derived settings follow the variant's groups: (1,2,4) gives ladder and step size by Techniques
    say; (3) gives network, learning rate (App. B.1) and dequantisation (as the authors trained
    each network); (5) the weights that are sampled. Raises ValueError for a value out of range.
    """
    if settings.checkpoint is not None:
        return _of_checkpoint(settings, settings.checkpoint, variant, data, seed)
    row = None if settings.preset is None else _row(settings.preset, variant)
    ladder = _computed_ladder(settings, data, row) if variant.noise_scales else NCSN_LADDER
    conditional = not variant.conditioning
    if settings.conditioning is not None:
        conditional = CONDITIONINGS[settings.conditioning].told
    sampling = _sampling_ladder(settings, variant, ladder, data)
    architecture = settings.architecture or architecture_for(data.image_size)
    check_image_size(architecture, data.image_size)
    train = TrainSettings(
        architecture=architecture,
        width=settings.width,
        conditional=conditional,
        sigma_begin=ladder.sigma_begin,
        sigma_end=ladder.sigma_end,
        n_levels=ladder.n_levels,
        iterations=_first(settings.iterations, row and row.iterations, 300_000),
        batch_size=_first(settings.batch_size, row and row.batch_size, 128),
        learning_rate=_first(settings.learning_rate, 1e-4 if variant.conditioning else 1e-3),
        adam_eps=_first(settings.adam_eps, row and row.adam_eps, 1e-8),
        amsgrad=settings.amsgrad,
        ema_momentum=settings.ema_momentum,
        flip=data.flip if settings.flip is None else settings.flip,
        dequantisation=settings.dequantisation or ("none" if variant.conditioning else "uniform"),
        objective=settings.objective,
        noise_levels=settings.noise_levels,
        loss_weights=settings.loss_weights,
        conditioning=settings.conditioning,
        ema_profiles=() if settings.ema is None or not variant.ema else (settings.ema,),
        fd_epsilon=settings.fd_epsilon if settings.objective.startswith("fd_") else None,
        precision=settings.precision,
        snapshot_interval=settings.snapshot_interval,
        test_interval=settings.test_interval,
        seed=seed,
    )
    cell = Cell(
        data=data,
        variant=variant,
        seed=seed,
        train=train,
        sampler=settings.sampler,
        sampling_levels=sampling.n_levels,
        n_steps_each=sampling.n_steps_each,
        step_size=sampling.step_size,
        step_rule=sampling.step_rule,
        schedule=sampling.schedule,
        start=settings.start,
        snr=sampling.snr,
        churn=_churn(settings),
        ema=settings.ema if variant.ema else None,
        reference=settings.reference or default_reference(data.name),
        n_selection=settings.n_selection,
        n_final=_first(settings.n_final, max(settings.n_selection, _full_n(data))),
        n_loss=settings.n_loss,
        n_dump=settings.n_dump,
    )
    return with_plugins(cell)


def variant_of(path: str, weights: str) -> Variant:
    """Return the variant whose network a file holds; ValueError for another file, or weights."""
    found = _network_file(path)
    if weights not in found.weights:
        raise ValueError(f"checkpoint {path} has no {weights} weights")
    own = (found.sigma_begin, found.sigma_end, found.n_levels)
    ncsn = (NCSN_LADDER.sigma_begin, NCSN_LADDER.sigma_end, NCSN_LADDER.n_levels)
    return Variant(
        noise_scales=own not in (ncsn, (None, None, NCSN_LADDER.n_levels)),
        conditioning=not found.conditional,
        ema=weights == "ema",
    )


def weights_in(path: str) -> tuple[str, ...]:
    """Return which weights a file holds, "raw" and "ema"; ValueError for another file."""
    return _network_file(path).weights


@lru_cache(maxsize=64)
def _network_file(path: str) -> NetworkFile:
    try:
        return read_network_file(path)[0]
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def _of_checkpoint(
    settings: Settings, path: str, variant: Variant, data: DataFacts, seed: int
) -> Cell:
    """Return the cell that samples a file's network: the file's ladder, Table 4's T and epsilon.

    Where Table 4 has another ladder for the data, T and epsilon follow as for a training.
    """
    found = _network_file(path)
    held = variant_of(path, variant.weights)
    if held != variant:
        raise ValueError(f"checkpoint {path} holds a network of {held.name}, not {variant.name}")
    if found.channels != data.channels:
        raise ValueError(
            f"checkpoint {path} is of images of {found.channels} channels; {data.name} has "
            f"{data.channels}"
        )
    changes: dict[str, Any] = {}
    for key in ("architecture", "conditioning", "n_levels", "sigma_begin", "sigma_end"):
        given, held_by_it = getattr(settings, key), getattr(found, key)
        if given is not None and held_by_it is not None and given != held_by_it:
            raise ValueError(f"{key} = {given} has no effect: checkpoint {path} has {held_by_it}")
        changes[key] = _first(held_by_it, given)
    preset = settings.preset or _published_for(found, variant, data)
    if preset is not None or not variant.noise_scales:
        changes |= dict.fromkeys(("n_levels", "sigma_begin", "sigma_end"))
    iterations = found.iteration or 1
    changes |= {"checkpoint": None, "preset": preset, "width": found.width}
    changes |= {"iterations": iterations, "snapshot_interval": iterations}
    return dataclasses.replace(
        resolve(dataclasses.replace(settings, **changes), variant, data, seed),
        network_sha256=found.sha256,
        network_path=str(Path(path).resolve()),
    )


def _published_for(found: NetworkFile, variant: Variant, data: DataFacts) -> str | None:
    """Return the data set of Table 4 that a file's ladder is the one of."""
    for row in TABLE_4:
        own = (row.ladder.sigma_begin, row.ladder.n_levels)
        theirs = data.name in (row.dataset, f"{row.dataset}-jpeg")
        if variant.noise_scales and theirs and own == (found.sigma_begin, found.n_levels):
            return row.dataset
    return None


def _full_n(data: DataFacts) -> int:
    """The authors' sample count: App. B.2 states it for CelebA, they said CIFAR-10's elsewhere."""
    return 50_000 if quoted.family(data.name) == "CIFAR-10" else 10_000


def _sampling_ladder(
    settings: Settings, variant: Variant, trained: Ladder, data: DataFacts
) -> Ladder:
    """Return the ladder that samples descend; ValueError for one the sampler or network refuses."""
    ladder, levels, kind = trained, settings.sampling_levels, sampler_kind(settings.sampler)
    flexible = _takes_any_scale(settings, variant, data)
    if levels is not None:
        if not flexible:
            raise ValueError(
                f"sampling_levels = {levels:g} needs a network that takes any noise scale, as "
                f"Technique 3's does; that of "
                f"{variant.name} knows its own {trained.n_levels} noise scales only"
            )
        n_levels = max(2, round(levels * trained.n_levels)) if levels < 1 else int(levels)
        ladder = dataclasses.replace(trained, n_levels=n_levels)
    if flexible:
        ladder = dataclasses.replace(ladder, schedule=settings.schedule)
    if not kind.step_size:
        return _without_step_size(settings, variant, ladder, data)
    rule = settings.step_size_rule if variant.noise_scales else None
    if rule is not None:
        ladder = dataclasses.replace(ladder, snr=settings.snr).by_rule(step_rule_name(rule))
    elif ladder.step_rule != "given" and (
        settings.sampler == "consistent"
        or ladder.n_levels != trained.n_levels
        or ladder.schedule != trained.schedule
    ):
        ladder = ladder.by_rule(_step_rule(ladder, settings.sampler))
    if settings.sampler == "consistent":
        if ladder.n_steps_each > 1 and not flexible:
            raise ValueError(
                f"sampler = 'consistent' with n_steps_each = {ladder.n_steps_each} needs a network "
                f"with Technique 3, since it refines the noise scales; {variant.name} has none"
            )
        check_consistent_step_size(ladder.step_size, ladder.sigmas, ladder.n_steps_each)
    elif ladder.step_rule != "snr":
        check_step_size(ladder.step_size, ladder.sigma_end)
    return ladder


def _churn(settings: Settings) -> float:
    return settings.churn if "churn" in sampler_kind(settings.sampler).options else 0.0


def _takes_any_scale(settings: Settings, variant: Variant, data: DataFacts) -> bool:
    """Return whether a network takes noise scales other than those of its own ladder."""
    if not takes_any_scale(settings.architecture or architecture_for(data.image_size)):
        return False
    plain = settings.conditioning or ("inverse_sigma" if variant.conditioning else "normalisation")
    return plain != "normalisation" or settings.noise_levels != "ladder"


def _without_step_size(
    settings: Settings, variant: Variant, ladder: Ladder, data: DataFacts
) -> Ladder:
    """Return the ladder of a sampler that has no epsilon; T by the budget of evaluations.

    So all samplers of a grid spend about as much on a sample, unless T is given.
    """
    n_steps_each = settings.n_steps_each if variant.noise_scales else None
    if n_steps_each is None:
        budget = ladder.n_steps + 1
        if variant.noise_scales:
            budget = 1 + _first(settings.score_evaluations, published_evaluations(data.image_size))
        n_steps_each = affordable_steps_of(settings.sampler, budget, ladder.n_levels)
    between = evaluates_between(settings.sampler, n_steps_each, _churn(settings))
    if between and not _takes_any_scale(settings, variant, data):
        raise ValueError(
            f"sampler = {settings.sampler!r} with n_steps_each = {n_steps_each} evaluates scores "
            f"between noise scales; the network of {variant.name} knows its own "
            f"{ladder.n_levels} only"
        )
    takes_snr = "snr" in sampler_kind(settings.sampler).options
    snr = _first(settings.snr, SNR) if takes_snr else None
    return dataclasses.replace(
        ladder,
        n_steps_each=n_steps_each,
        step_size=0.0,
        step_rule="none" if snr is None else "snr",
        snr=snr,
    )


def _step_rule(ladder: Ladder, sampler: str) -> str:
    """Return the rule of ``STEP_RULES`` that is made for a ladder sampled so."""
    if sampler == "consistent":
        return "consistent"
    # Technique 4 looks at one noise scale; with one step at each, samples end with twice the
    # variance that they should have, on any ladder.
    return "steady state" if ladder.n_steps_each == 1 else "Technique 4"


def _row(preset: str, variant: Variant) -> Published:
    """Return Table 4's row; a dataset without an NCSN row lends that of NCSNv2 for training."""
    if not variant.noise_scales and any((r.model, r.dataset) == ("NCSN", preset) for r in TABLE_4):
        return published("NCSN", preset)
    return published("NCSNv2", preset)


def _computed_ladder(settings: Settings, data: DataFacts, row: Published | None) -> Ladder:
    if settings.coverage is not None and settings.n_levels:
        raise ValueError(
            f"coverage = {settings.coverage:g} has no effect beside n_levels = "
            f"{settings.n_levels}, which it would give; leave one of them out"
        )
    if row is not None and not any(getattr(settings, name) is not None for name in LADDER_SETTINGS):
        return row.ladder
    printed = row and row.ladder
    published_levels = printed.n_levels if printed and settings.coverage is None else None
    evaluations = _first(settings.score_evaluations, published_evaluations(data.image_size))
    ladder = Ladder.by_techniques(
        _first(settings.sigma_begin, printed and printed.sigma_begin, data.max_distance),
        data.dim,
        sigma_end=_first(settings.sigma_end, printed and printed.sigma_end, 0.01),
        coverage=_first(settings.coverage, 0.5),
        n_levels=settings.n_levels or published_levels,
        n_steps_each=_first(settings.n_steps_each, printed and printed.n_steps_each),
        score_evaluations=evaluations,
        step_size=settings.step_size,
    )
    if settings.step_size is not None or ladder.n_steps_each > 1:
        return ladder
    return ladder.by_rule(_step_rule(ladder, "annealed"))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
