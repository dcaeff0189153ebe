"""Errors in what the finite-difference trials' files become: comparisons, distances, fields."""

from tests.mutants.runner import Mutant

_TRIALS = ("tests/whole/test_trials.py",)


def _of(path: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(path, old, new, _TRIALS) for old, new in changes]


MUTANTS = [
    Mutant(
        "ablations/studies/finite_difference/sections/curves.py",
        "left=np.nan",
        "left=0.0",
        _TRIALS,
        why="shows only in runs where a curve begins after the other's end",
    ),
    *_of(
        "ablations/studies/finite_difference/sections/cost.py",
        (
            "ratios = [a / b for a, b in zip(times[name]",
            "ratios = [b / a for a, b in zip(times[name]",
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/dkef.py",
        (
            'return result["likelihoods"][name]["nll"]',
            'return result["likelihoods"]["broad"]["nll"]',
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/flow.py",
        (
            '"NLL": lambda result: result["curve"]["nll"][-1]',
            '"NLL": lambda result: result["curve"]["nll"][0]',
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/distance.py",
        (
            'iteration": lambda result: result["curve"]["distance"][-1]',
            'iteration": lambda result: result["curve"]["distance"][0]',
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/experiments/distance.py",
        (
            "stage = cell.distance_stage(iteration, denoise=True",
            "stage = cell.distance_stage(iterations[0], denoise=True",
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/experiments/toy.py",
        ('"ssm": fields["SSM"].cpu()', '"ssm": fields["FD-SSM"].cpu()'),
        (
            "toy_mixture.fisher_divergence(field, truth, weights)",
            "toy_mixture.fisher_divergence(field, truth)",
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/experiments/implicit.py",
        (
            "feature_statistics(_features(extract_features, to_uint8(train.cpu()), device))",
            "feature_statistics(_features(extract_features, to_uint8(test.cpu()), device))",
        ),
    ),
    *_of(
        "scorekit/runtime/timing.py",
        ("return ordered[rank - 1], ordered[n - rank]", "return ordered[0], ordered[n - rank]"),
    ),
    *_of(
        "ablations/reporting/paired.py",
        ("[b - a for a, b in zip(first", "[a - b for a, b in zip(first"),
        ("math.log(b / a) for a, b in zip(first", "math.log(a / b) for a, b in zip(first"),
        ("0.5 + CONFIDENCE / 2, n - 1", "0.5 + CONFIDENCE / 2, n"),
        ("* stdev(values) / math.sqrt(n)", "* stdev(values) / n"),
        ('paired_ratio if sort == "ratio"', 'paired_difference if sort == "ratio"'),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/curves.py",
        ('end = min(curve["seconds"][-1]', 'end = max(curve["seconds"][-1]'),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/loss.py",
        ('[curves[name]["exact_sm"][-1]', '[curves[name]["exact_sm"][0]'),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/toy.py",
        (
            '[result[key][name] for result in done] for name in ("SSM", "FD-SSM")',
            '[result[key][name] for result in done] for name in ("FD-SSM", "SSM")',
        ),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/dkef.py",
        ("pick(exact[seed]) for seed in seeds", "pick(exact[seeds[0]]) for seed in seeds"),
    ),
    *_of(
        "ablations/studies/finite_difference/sections/rows.py",
        (
            "pick(sides[1][seed]) for seed in seeds",
            "pick(sides[1][seed]) for seed in reversed(seeds)",
        ),
    ),
]
