"""Errors in what makes a grid's numbers of its trained networks: drawing, measuring, collecting."""

from tests.mutants.runner import Mutant

_WHOLE = ("tests/whole/test_oracle.py",)


def _of(path: str, *changes: tuple[str, str], tests: tuple[str, ...] = _WHOLE) -> list[Mutant]:
    return [Mutant(path, old, new, tests) for old, new in changes]


MUTANTS = [
    *_of(
        "ablations/pipeline/sampling.py",
        # Raw rows from averaged weights, and averaged rows from raw ones.
        ("snapshot, cell.weights)", 'snapshot, "ema")'),
        ("snapshot, cell.weights)", 'snapshot, "raw")'),
        # Snapshots of a job are never changed for the next.
        ("if self._loaded != snapshot:", "if self._loaded is None:"),
        ("seed=cell.seed,", "seed=0,"),
        ("cell.sampler,\n                score,", '"annealed",\n                score,'),
        ("autocast(precision, device),", 'autocast("fp32", device),'),
        # Denoised and not denoised exchanged.
        (
            "to_uint8(drawn.last[own].cpu()), to_uint8(drawn.denoised[own].cpu())",
            "to_uint8(drawn.denoised[own].cpu()), to_uint8(drawn.last[own].cpu())",
        ),
        ('True: torch.cat([batch["denoised"]', 'True: torch.cat([batch["last"]'),
        # The rest of the samples are the first ones again.
        ("torch.arange(start, stop), before", "torch.arange(stop - start), before"),
        ("torch.arange(self._batch.size).add(first + begin)", "torch.arange(self._batch.size)"),
        ('"mix_angle": angle[place]', '"mix_angle": 0.5 * angle[place]'),
        ("drawn.last[own].cpu()), to", "drawn.last[own].cpu() * 0.99), to"),
        ('| {"n": stop - start}', '| {"n": stop}'),
    ),
    *_of(
        "ablations/pipeline/measuring.py",
        # --reference test measured against training images.
        ('if stage.settings["split"] == "train" else dataset.test', "if stage else dataset.test"),
        ("order[first : first + MAX_REFERENCE]", "order[first : first + n // 2]"),
        ("kernel_distance(features, real, seed", "kernel_distance(real, real, seed"),
        (
            "kernel_distance(features, real, seed=cell.seed)",
            "kernel_distance(features, real, seed=9)",
        ),
        ("_shares(features, equal", "_shares(equal, features"),
        ("equal = real[: len(features)]", "equal = real"),
        (
            "distance_interval(features, reference, seed=cell.seed)",
            "distance_interval(features, reference)",
        ),
        ("inception_score(logits)", "inception_score(features)"),
        ('sample_file(stage.settings["denoise"])', "sample_file(True)"),
        (
            '"n": statistics.n,\n                "n_reference"',
            '"n": reference.n,\n                "n_reference"',
        ),
        ('if cell.reference == "train" else dataset.train', "if cell.reference else dataset.train"),
        ("dataset.train, cell.n_final, seed=0", "dataset.test, cell.n_final, seed=0"),
        ("images[..., ::-1]", "images[..., ::-1, :]"),
        ("k=k, mirrored=mirrored", "k=k, mirrored=None"),
        ('load_array(self.store.directory(block) / "order.npy")', "np.arange(len(features))"),
        ("nearest_in_blocks(features, blocks()", "nearest_in_blocks(features[::-1], blocks()"),
    ),
    *_of(
        "ablations/pipeline/evaluation.py",
        ("fake=fake[: cell.n_dump]", "fake=fake[-cell.n_dump :]"),
        (
            "real=open_dataset(self.context, cell.data).train",
            "real=open_dataset(self.context, cell.data).test",
        ),
        ("test=test[:, 1]", "test=test[:, 0]"),
    ),
    *_of(
        "ablations/pipeline/cell.py",
        (
            "return _reference_stage(self.data, self.reference)",
            'return _reference_stage(self.data, "train")',
        ),
        ("n_levels=self.sampling_levels,", "n_levels=self.train.n_levels,"),
        ("n_steps_each=self.n_steps_each,", "n_steps_each=self.n_steps_each - 1 or 1,"),
        ("step_size=self.step_size,", "step_size=1.1 * self.step_size,"),
        (
            "return sampler_evaluations(self.sampler, self.sampling_levels, self.n_steps_each)",
            "return self.sampling_levels * self.n_steps_each + 1",
        ),
        (
            '"weights": self.weights,\n            "iteration": iteration,\n            "sampler"',
            '"weights": "raw",\n            "iteration": iteration,\n            "sampler"',
        ),
        ("bounds = [(0, self.n_selection)]", "bounds = [(0, self.n_final)]"),
    ),
    *_of(
        "ablations/pipeline/variants.py",
        ('return "ema" if self.ema else "raw"', 'return "raw" if self.ema else "ema"'),
    ),
    *_of(
        "ablations/studies/ncsnv2/collect.py",
        (
            '"weights": _weights(cell),\n            "denoise"',
            '"weights": "EMA",\n            "denoise"',
        ),
        ("against | part(group, value=metric)", 'against | part(group, value="recall")'),
        ('row["n_sampled"] / row["sampling_s"]', 'row["n_sampled"] / row["training_s"]'),
        ("iteration = 1 + every * np.arange", "iteration = every * np.arange"),
        ("selected=chosen.get(denoise) == iteration", "selected=chosen.get(True) == iteration"),
        (
            "for i in cell.train.snapshot_iterations\n            for stage",
            "for i in cell.train.snapshot_iterations[-1:]\n            for stage",
        ),
    ),
    *_of(
        "ablations/studies/ncsnv2/sections/ablation.py",
        ("values.std(ddof=1)", "values.std(ddof=0)"),
        ('"distance_mean": values.mean()', '"distance_mean": values.min()'),
        (
            '(results.distances["purpose"] == "final")',
            '(results.distances["purpose"] == "selection")',
        ),
        ('final[final["denoise"] == denoise]', 'final[final["denoise"] != denoise]'),
    ),
    *_of(
        "ablations/studies/ncsnv2/resolution.py",
        (
            "step_size=sampling.step_size,\n        step_rule",
            "step_size=1.1 * sampling.step_size,\n        step_rule",
        ),
        ("conditional = not variant.conditioning", "conditional = variant.conditioning"),
    ),
    *_of(
        "ablations/pipeline/dumps.py",
        ("np.random.Philox(key=cell.seed)", "np.random.Philox(key=0)"),
    ),
    *_of(
        "ablations/pipeline/held_out.py",
        ('("test", dataset.test)', '("test", dataset.train)'),
        ("cell.data.channels, cell.weights)", 'cell.data.channels, "raw")'),
        ("permutation(len(images))[:n]", "permutation(len(images))[-n:]"),
    ),
    *_of(
        "scorekit/training/held_out_loss.py",
        ("WATCH_STEP - 1 - draw", "WATCH_STEP - 1"),
        ('("gap", test - train)', '("gap", train - test)'),
        ("total / draws", "total"),
    ),
    *_of(
        "scorekit/sampling/langevin.py",
        ("(step // self._steps_per_sigma)", "((step + 1) // self._steps_per_sigma)"),
        (
            "self._rate = epsilon / float(sigmas[-1]) ** 2",
            "self._rate = epsilon / float(sigmas[-1])",
        ),
        (
            "if self._consistent else x.clone(), x + shift",
            "if self._consistent else x.clone(), x + self._rate * shift",
        ),
        (
            "n_steps=(n_levels - consistent) * n_steps_each",
            "n_steps=n_levels * n_steps_each",
        ),
    ),
    *_of(
        "scorekit/sampling/trajectory.py",
        (
            "return philox_uniform(self._key, sample_index, zero, image_shape, Stream.INITIAL)",
            "return philox_uniform(self._key, sample_index, zero, image_shape, Stream.LANGEVIN)",
        ),
    ),
    *_of(
        "scorekit/metrics/frechet.py",
        ("distance - 2 * overlap", "distance - overlap"),
        ("covariance / (n - 1), n=n", "covariance / n, n=n"),
    ),
    *_of(
        "ablations/pipeline/selection.py",
        (
            "cell.distance_stage(iteration, denoise=denoise, final=False))",
            "cell.distance_stage(iteration, denoise=False, final=False))",
        ),
        ("key=lambda i: (distances[i], i)", "key=lambda i: (-distances[i], i)"),
        ("key=lambda i: (distances[i], i)", "key=lambda i: -i"),
        ('"denoised.npy" if denoise else "last.npy"', '"last.npy" if denoise else "denoised.npy"'),
    ),
    *_of(
        "scorekit/metrics/baselines.py",
        (
            "(vectors * np.sqrt(values.clip(min=0))) @ vectors.T",
            "(vectors * np.sqrt(values.clip(min=0))) @ vectors",
        ),
    ),
    # Rows that set something apart.
    *_of(
        "ablations/pipeline/sampling.py",
        ("start=cell.start,", 'start="uniform",'),
        ("churn=cell.churn,\n                **options", "churn=0.0,\n                **options"),
        ('snr=None if cell.sampler == "annealed" else cell.snr', "snr=None"),
        ("cell.ladder.sigmas, between=between)", "cell.train.sigmas, between=between)"),
        tests=("tests/ablations/pipeline/test_sampling.py",),
    ),
    *_of(
        "ablations/pipeline/cell.py",
        ("schedule=self.schedule,", 'schedule="geometric",'),
        ("snr=self.snr,", "snr=None,"),
        tests=("tests/ablations/pipeline/test_sampling.py",),
    ),
    *_of(
        "ablations/pipeline/cell.py",
        ("return self.ema if self.ema is not None", "return self.ema if self.ema is None"),
        ('{"start": "initial"}.get(key, key)', "key"),
        tests=("tests/whole/test_digests.py",),
    ),
    *_of(
        "ablations/studies/ncsnv2/rows.py",
        ("{**overrides, **given}", "{**given, **overrides}"),
        ('BUDGETS[own["budget"]] if "budget" in own else budget', "budget"),
        ("{k: v for k, v in apart.items() if k not in own}", "apart"),
        ("own = {key: value for key, value in own.items() if key not in found}", "own = {}"),
        tests=("tests/ablations/studies/ncsnv2/test_grids.py",),
    ),
    *_of(
        "ablations/studies/ncsnv2/grids.py",
        ("ema_profiles=found[alike(cell)]", "ema_profiles=cell.train.ema_profiles"),
        ("base_overrides[key] != values[0]", "base_overrides[key] == values[0]"),
        tests=("tests/ablations/studies/ncsnv2/test_grids.py",),
    ),
    *_of(
        "ablations/studies/ncsnv2/sections/comparisons.py",
        ("one.keys() & other.keys()", "one.keys() | other.keys()"),
        ("apart.low <= 0", "apart.high <= 0"),
        ("if how == measure and len(how) == 1", "if how"),
        ("- len(there & set(subset))", "+ 1 - len(there & set(subset))"),
        ("difference.low <= 0 <= difference.high", "difference.low <= 0"),
        tests=("tests/ablations/studies/ncsnv2/sections/test_comparisons.py",),
    ),
    *_of(
        "ablations/engine/stages.py",
        ('and record.get("made_by") != made_by(stage)', ""),
        ("if not (self.rerun and _is_outdated(stage, record)):", "if True:"),
        ("below = [self._code_of(need) for need in stage.needs]", "below = []"),
        tests=("tests/ablations/engine/test_stages.py",),
    ),
]
