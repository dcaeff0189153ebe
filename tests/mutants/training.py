"""Errors in training, in the names of results and in what a power cut leaves."""

from tests.mutants.runner import Mutant

_ORACLE = "tests/whole/test_training_oracle.py"
_RUN = f"{_ORACLE}::test_a_run_comes_to_the_oracles_numbers"
_MICRO_BATCHES = f"{_ORACLE}::test_micro_batches_of_unequal_sizes_come_to_the_same_numbers"
_DIGESTS, _DURABILITY = ("tests/whole/test_digests.py",), ("tests/whole/test_durability.py",)


def _run(*cases: str) -> tuple[str, ...]:
    """Runs of the oracle's, by their names: the base's objective and the change."""
    return tuple(f"{_RUN}[{case}]" for case in cases)


def _of(path: str, tests: tuple[str, ...], *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(path, old, new, tests) for old, new in changes]


_PLAIN = _run("dsm-ema_momentum-0.8")
_NOT_DSM = _run("ssm-objective-ssm_vr")

_SETTINGS_IGNORED = (
    [
        Mutant("scorekit/training/trainer.py", old, new, tests)
        for old, new, tests in (
            ("amsgrad=settings.amsgrad,", "amsgrad=False,", _run("dsm-amsgrad-True")),
            ("eps=settings.adam_eps,", "eps=1e-2,", _run("dsm-adam_eps-0.03")),
            ("eps=settings.adam_eps,", "", _PLAIN),
            ("lr=settings.learning_rate,", "lr=1e-3,", _run("dsm-learning_rate-0.002")),
            ("philox_key(settings.seed, device)", "philox_key(0, device)", _PLAIN),
            ("self._parameters, self.settings.ema_momentum)", "self._parameters, 0.9)", _PLAIN),
            (
                "with autocast(self.settings.precision, self.device):",
                'with autocast("fp32", self.device):',
                (f"{_ORACLE}::test_bfloat16_comes_to_the_oracles_losses",),
            ),
            (
                "with precision_context(precision), autocast(precision, self.device):",
                "with precision_context(precision):",
                (f"{_ORACLE}::test_bfloat16_comes_to_the_oracles_losses",),
            ),
        )
    ]
    + [
        Mutant("scorekit/training/networks.py", old, new, tests)
        for old, new, tests in (
            ("conditional=settings.conditional,", "", _run("dsm-conditional-True")),
            ("torch.manual_seed(settings.seed)", "torch.manual_seed(0)", _PLAIN),
            (
                "keys=(weights,))[weights]",
                'keys=("ema",))["ema"]',
                (f"{_ORACLE}::test_a_snapshot_is_loaded_as_the_weights_that_were_asked_for",),
            ),
        )
    ]
    + [
        Mutant("scorekit/training/loss.py", old, new, tests)
        for old, new, tests in (
            ("epsilon=settings.fd_epsilon,", "", _run("fd_ssm_vr-fd_epsilon-0.5")),
            (
                'if settings.dequantisation == "uniform":',
                "if False:",
                _run("dsm-dequantisation-uniform"),
            ),
            ("if self.augmented and settings.flip:", "if self.augmented:", _run("dsm-flip-False")),
            (
                "projections(settings.projection,",
                'projections("rademacher",',
                _run("ssm-projection-sphere", "ssm-projection-gaussian"),
            ),
        )
    ]
)

_STEP = """        self.optimizer.step()
        ema_update(self.ema_network.parameters(), self._parameters, self.settings.ema_momentum)
"""
_EMA_FIRST = "\n".join([*reversed(_STEP.splitlines()), ""])

_WEIGHTS = '            "weights": self.weights,\n'
_ITERATION = '            "iteration": iteration,\n'
_SAMPLER, _N = '            "sampler"', '            "n"'

_LOOP = [
    *_of(
        "scorekit/training/trainer.py",
        _PLAIN,
        (_STEP, _EMA_FIRST),
        # The test loss.
        ("self.dataset.test[begin:end]", "self.dataset.train[begin:end]"),
        ("self._watched(self.ema_network, *part", "self._watched(self.network, *part"),
        ("torch.tensor(WATCH_STEP, device", "torch.tensor(0, device"),
        ("return float(total / n)", "return float(total / self.settings.batch_size)"),
        # Which weights are whose.
        ('"raw": self.network.state_dict()', '"raw": self.ema_network.state_dict()'),
        ('"ema": self.ema_network.state_dict()', '"ema": self.network.state_dict()'),
        ("if done % settings.test_interval == 0:", "if done in snapshots:"),
    ),
    *_of(
        "scorekit/training/batches.py",
        _PLAIN,
        # The order of images.
        ("key=[self._seed, epoch]", "key=[self._seed, 0]"),
        ("key=[self._seed, epoch]", "key=[0, epoch]"),
        (
            "position = iteration * self._size + np.arange(begin, end)",
            "whole = n // self._size\n        position = (iteration // whole * n"
            " + iteration % whole * self._size + np.arange(begin, end))",
        ),
        ("position[epochs == e] % n]", "position[epochs == e] % n - 1]"),
    ),
    *_of(
        "scorekit/training/trainer.py",
        _NOT_DSM,
        ('device, objective="dsm")', 'device, objective="fd_ssm")'),
        ("augmented=True)", 'augmented=True, objective="dsm")'),
    ),
    *_of(
        "scorekit/training/loss.py",
        _PLAIN,
        ("if self.augmented and settings.flip:", "if settings.flip:"),
        # Streams of noise.
        ("len(sigmas), Stream.NOISE_LEVEL", "len(sigmas), Stream.FLIP"),
        ("step, 2, Stream.FLIP)", "step, 2, Stream.NOISE_LEVEL)"),
    ),
    *_of(
        "scorekit/training/loss.py",
        _NOT_DSM,
        ("step, shape, Stream.PERTURBATION)", "step, shape, Stream.INITIAL)"),
    ),
    *_of(
        "scorekit/training/loss.py",
        _run("dsm-dequantisation-uniform"),
        ("shape, Stream.DEQUANTISATION)", "shape, Stream.PERTURBATION)"),
    ),
    *_of(
        "scorekit/training/trainer.py",
        (_MICRO_BATCHES,),
        ("return losses.sum() / self.settings.batch_size", "return losses.mean()"),
        ("index[first:last], step, self._key)", "index[: last - first], step, self._key)"),
    ),
    *_of(
        "scorekit/training/gradients.py",
        (_MICRO_BATCHES,),
        ("self._used[i], parameter.grad = True, None", "self._used[i] = True"),
        ("bounds = [i * n // parts ", "bounds = [i * (n // parts) "),
        ("self._loss += loss.detach()", "self._loss += loss.detach() / 2"),
    ),
    *_of(
        "scorekit/training/settings.py",
        _run("dsm-snapshot_interval-4"),
        ("sorted({*regular, self.iterations})", "sorted({*regular})"),
        ("range(self.snapshot_interval, ", "range(1, "),
    ),
]

_OBJECTIVES = [
    *_of(
        "scorekit/objectives/dsm.py",
        _run("dsm-dequantisation-uniform"),
        ("return 0.5 * residual", "return residual"),
        ("shape, Stream.PERTURBATION)\n", "shape, Stream.INITIAL)\n"),
    ),
    *_of(
        "scorekit/training/batches.py",
        _run("dsm-dequantisation-uniform"),
        ("+ dequantisation) / 256.0", "+ dequantisation) / 255.0"),
    ),
    *_of(
        "scorekit/training/batches.py",
        _PLAIN,
        ("images.to(torch.float32) / 255.0", "images.to(torch.float32) / 256.0"),
        ("x.flip(-1), x)", "x, x.flip(-1))"),
        ("x.flip(-1), x)", "x.flip(-2), x)"),
    ),
    *_of(
        "scorekit/objectives/score_matching.py",
        _NOT_DSM,
        ("return sigma.square() * loss", "return sigma * loss"),
        ("return curvature[0] + 0.5 * _squared_norm", "return curvature[0] + _squared_norm"),
    ),
    *_of(
        "scorekit/objectives/score_matching.py",
        _run("fd_ssm_vr-fd_epsilon-0.5"),
        ("curvature + 0.125 * _squared_norm", "curvature + 0.25 * _squared_norm"),
        ("curvature = 0.5 * rate * inner", "curvature = rate * inner"),
    ),
    *_of(
        "scorekit/derivatives/displacement.py",
        _run("fd_ssm_vr-projection-gaussian"),
        ("NOISE_FRACTION = 0.2", "NOISE_FRACTION = 0.1"),
        ("RELATIVE_EPSILON = 0.02", "RELATIVE_EPSILON = 0.01"),
    ),
    *_of(
        "scorekit/objectives/directions.py",
        _run("ssm-objective-ssm_vr", "ssm-projection-sphere"),
        (
            "uniform(key, sample_index, step, shape, Stream.PROJECTION)",
            "uniform(key, sample_index, step, shape, Stream.FLIP)",
        ),
        (
            "normal(key, sample_index, step, shape, Stream.PROJECTION)",
            "normal(key, sample_index, step, shape, Stream.FLIP)",
        ),
        ("math.sqrt(math.prod(shape)) / norm", "1 / norm"),
    ),
    *_of(
        "scorekit/techniques/ema.py",
        _PLAIN,
        ("1 - momentum)", "momentum)"),
    ),
    *_of(
        "scorekit/techniques/noise_scales.py",
        _PLAIN,
        ("np.geomspace(start, stop, n)", "np.linspace(start, stop, n)"),
    ),
]

_NAMES = [
    *_of(
        "ablations/pipeline/cell.py",
        _DIGESTS,
        (_WEIGHTS + _ITERATION + _SAMPLER, _ITERATION + _SAMPLER),
        (_ITERATION + _SAMPLER, _SAMPLER),
        (_WEIGHTS + _ITERATION + _N, _ITERATION + _N),
        ('            "sampler": self.sampler,\n', ""),
        ('            "n_levels": self.sampling_levels,\n', ""),
        ('            "n_steps_each": self.n_steps_each,\n', ""),
        ('            "step_size": self.step_size,\n', ""),
        ('            "seed": self.seed,\n', ""),
        ('| {"start": start, "stop": stop}', ""),
        ('Stage("sample", settings, (cell.train_stage(),), ', 'Stage("sample", settings, (), '),
        ('identity(self.train) | {"data": self.data.fingerprint}', "identity(self.train)"),
        ('space | {"denoise": denoise}', "space"),
        ('"extractor_fingerprint": data.extractor_fingerprint}\n', "}\n"),
        ('settings = {"data": data.fingerprint, "n": n}', 'settings = {"data": data.fingerprint}'),
        ('"flip": self.data.flip, ', ""),
        ("_reference_stage(self.data, self.reference)\n", '_reference_stage(self.data, "train")\n'),
        ("Stage(kind, {}, (cell.reference_stage(), *features), ", "Stage(kind, {}, features, "),
        # What changes no result would have it made again.
        ('"sampler": self.sampler,', '"sampler": self.sampler, "n_dump": self.n_dump,'),
        (
            '{"data": self.data.fingerprint}',
            '{"data": self.data.fingerprint, "at": self.data.store}',
        ),
    ),
    *_of(
        "ablations/engine/stages.py",
        _DIGESTS,
        ("self.settings, [s.digest for s in self.needs]]", "self.settings]"),
        ("[RESULTS_VERSION, self.kind, self.settings,", "[RESULTS_VERSION, self.kind,"),
        ("[RESULTS_VERSION, self.kind, self.settings,", "[RESULTS_VERSION, self.settings,"),
    ),
    *_of(
        "ablations/studies/ncsnv2/resolution.py",
        _DIGESTS,
        ("amsgrad=settings.amsgrad,", ""),
        ("precision=settings.precision,", ""),
        ("_first(settings.adam_eps, row", "_first(row"),
        ("ema_momentum=settings.ema_momentum,", ""),
        ("settings.reference or default_reference(data.name)", "default_reference(data.name)"),
        ("test_interval=settings.test_interval,", ""),
    ),
    *_of(
        "ablations/studies/finite_difference/trials.py",
        _DIGESTS,
        ('"batch_size": effort.dkef_batch_size,', '"batch_size": 200,'),
        ('"sigma": effort.loss_sigma,', '"sigma": 0.3,'),
        ('"evaluations": held_out, "seed": seed}', '"seed": seed}'),
    ),
]

_SAVED = """        save_tensors(path, content)
        earlier = [old for i, old in self._files("interim") if i <= iteration and old != path]
        if not passing:
            earlier += [old for i, old in self._files("checkpoint") if i <= iteration][: -self.keep]
        for old in earlier:
            old.unlink()
"""
_FIRST_LINE, *_REST = _SAVED.splitlines()
_REMOVED_FIRST = "\n".join([*_REST, _FIRST_LINE, ""])

_POWER_CUTS = [
    *_of(
        "scorekit/files.py",
        _DURABILITY,
        ("            os.fsync(file.fileno())\n", ""),
        ("            file.flush()\n", ""),
        ("    fsync_directory(path.parent)\n", ""),
        ("        os.fsync(descriptor)\n", "        pass\n"),
        (
            "            file.flush()\n            os.fsync(file.fileno())\n"
            "        os.replace(temporary, path)\n",
            "            file.flush()\n            os.replace(temporary, path)\n"
            "            os.fsync(file.fileno())\n",
        ),
    ),
    *_of(
        "scorekit/checkpoints/store.py",
        _DURABILITY,
        (_SAVED, _REMOVED_FIRST),
        ("write_bytes(best, path.read_bytes())", "best.write_bytes(path.read_bytes())"),
    ),
    *_of(
        "scorekit/checkpoints/tensors.py",
        _DURABILITY,
        (
            "    atomic_write(path, write)\n",
            '    with open(path, "wb") as file:\n        write(file)\n',
        ),
    ),
    *_of(
        "scorekit/data/preparation.py",
        _DURABILITY,
        (
            "        for file in self._files.values():  # the images are on the disk before the "
            "record says so\n            os.fsync(file)\n",
            "",
        ),
        ("            os.fsync(file)\n        return shapes\n", "        return shapes\n"),
        ("        fsync_directory(store.parent)\n", ""),
        (
            '            (self.directory / "progress.json").unlink(missing_ok=True)\n',
            "",
        ),
    ),
    *_of(
        "scorekit/runtime/locks.py",
        _DURABILITY,
        (
            "        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
            "        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        ),
    ),
    *_of(
        "ablations/engine/stages.py",
        _DURABILITY,
        ("            remove_temporaries(directory, older_s=0 if alone else 3600)\n", ""),
    ),
    *_of(
        "ablations/engine/intact.py",
        _DURABILITY,
        ("            self._checked[path] = seen\n", ""),
    ),
    *_of(
        "ablations/engine/intact.py",
        ("tests/ablations/engine/test_intact.py",),
        ('"ctime_ns": stat.st_ctime_ns', '"ctime_ns": 0'),
        (" < time.time() - _SETTLED_S", " < time.time() + 1"),
        ("self.reads_all or not large", "not large"),
        (" or notes.get(name) != seen", ""),
        ("large = stat.st_size >= MIN_BYTES", "large = True"),
    ),
    *_of(
        "ablations/hype/ratings.py",
        _DURABILITY,
        ("                os.fsync(file.fileno())\n", ""),
        ("                file.flush()\n", ""),
        (
            "        if new:\n            fsync_directory",
            "        if not new:\n            fsync_directory",
        ),
    ),
    *_of(
        "ablations/pipeline/dumps.py",
        _DURABILITY,
        ("    os.replace(temporary, target)\n", "    shutil.copytree(temporary, target)\n"),
        (
            "    for kind in _KINDS:\n        (temporary / kind).mkdir(parents=True)\n",
            "    temporary.mkdir()\n"
            '    write_sealed_json(temporary / "manifest.json", manifest)\n'
            "    for kind in _KINDS:\n        (temporary / kind).mkdir(parents=True)\n",
        ),
    ),
    *_of(
        "ablations/engine/code_snapshot.py",
        _DURABILITY,
        ("    os.rename(temporary, folder)\n", "    shutil.copytree(temporary, folder)\n"),
    ),
    *_of(
        "ablations/engine/lock.py",
        _DURABILITY,
        ("                    os.utime(path)\n", "                    pass\n"),
        ("lease and lease.token == mine.token else", "lease else"),
        ("(lease := _parse(_look(path))) and lease.token == mine.token", "True"),
        ("                os.link(aside, path)\n", "                pass\n"),
        ("        aside.unlink()\n", ""),
        ("not ended.wait(beat_s)", "not ended.wait(2 * beat_s)"),
        (
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            locked = True",
            "locked = True",
        ),
    ),
]

MUTANTS = [*_SETTINGS_IGNORED, *_LOOP, *_OBJECTIVES, *_NAMES, *_POWER_CUTS]
