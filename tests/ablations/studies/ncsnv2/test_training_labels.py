import dataclasses

from ablations.engine.settings import apply_overrides
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import BUDGETS
from ablations.studies.ncsnv2.training_labels import training_labels

DATA = DataFacts(
    name="digits",
    store="digits",
    fingerprint="0" * 64,
    channels=1,
    image_size=8,
    n_train=1500,
    n_test=297,
    flip=False,
    max_distance=4.8,
    extractor="digits-cnn",
    extractor_fingerprint="1",
)


def cell(variant, *, seed=0, data=DATA, **overrides):
    settings = apply_overrides(BUDGETS["quick"].settings, overrides)
    return resolve(settings, parse_variant(variant), data, seed=0).with_seed(seed)


def names(*cells):
    labels = training_labels(cells)
    return [labels[each.train_stage().digest] for each in cells]


def test_trainings_that_differ_are_never_called_alike():
    a, b, c = names(
        cell("ncsn_5"), cell("ncsn_1245", n_levels=10), cell("ncsn_1245", n_levels=10, amsgrad=True)
    )
    assert len({a, b, c}) == 3
    assert a == "conditional, L=10, amsgrad=False, sigma_begin=1"
    assert b == "conditional, L=10, amsgrad=False, sigma_begin=4.8"
    close = [cell("ncsnv2", sigma_begin=value, n_levels=9) for value in (5.0, 5.000001)]
    assert len(set(names(*close))) == 2


def test_a_training_has_one_short_name_for_all_that_share_it():
    cells = [cell("ncsn", seed=s) for s in range(2)] + [cell("ncsn_5"), cell("ncsnv2", n_levels=10)]
    other = cell("ncsn", data=dataclasses.replace(DATA, name="photos", fingerprint="2" * 64))
    assert names(*cells, other) == [
        *("conditional, L=10", "conditional, L=10", "conditional, L=10"),
        *("s(x)/σ, L=10", "conditional, L=10"),
    ]
