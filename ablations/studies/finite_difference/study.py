"""The finite-difference study as the launcher runs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ablations.engine.failures import clear_failure, record_failure
from ablations.engine.lock import launcher_lock
from ablations.engine.manifest import FiniteDifferencePlan, load_plan, save_plan
from ablations.engine.refresh import mark_stale, refresh_report
from ablations.engine.settings import parse_overrides
from ablations.engine.stages import StageStore
from ablations.studies.finite_difference.budgets import EFFORT_NOTES, EFFORTS, Effort
from ablations.studies.finite_difference.data import Skipped, image_sets, uci_files
from ablations.studies.finite_difference.experiments.cost import cost
from ablations.studies.finite_difference.experiments.deep import deep_energy
from ablations.studies.finite_difference.experiments.distance import distance
from ablations.studies.finite_difference.experiments.dkef import dkef
from ablations.studies.finite_difference.experiments.flow import flow
from ablations.studies.finite_difference.experiments.gradient import gradient_error
from ablations.studies.finite_difference.experiments.implicit import implicit
from ablations.studies.finite_difference.experiments.loss import loss_over_time
from ablations.studies.finite_difference.experiments.toy import toy
from ablations.studies.finite_difference.results import trial_state
from ablations.studies.finite_difference.trials import Trial, build_trials
from scorekit.runtime.compilation import precision_context
from scorekit.runtime.machine import PeakMemory, conditions, usable_cores

FINITE_DIFFERENCE = "finite-difference"
PARTS = ("toy", "loss", "distance", "flow", "implicit", "epsilon", "cost")

_PROGRESS_EVERY_S = 15.0

Run = Callable[..., tuple[dict[str, Any], list[Path]]]
RUNS: dict[str, Run] = {
    "toy": toy,
    "loss": loss_over_time,
    "distance": distance,
    "flow": flow,
    "implicit": implicit,
    "dkef": dkef,
    "deep": deep_energy,
    "gradient": gradient_error,
    "cost": cost,
}
#: Folders that some kinds of trial are given besides their own.
_FOLDERS: dict[str, Callable[[_Request], tuple[Path]]] = {
    "distance": lambda request: (request.out,),
    **dict.fromkeys(("flow", "implicit", "dkef"), lambda request: (request.data_root,)),
}
#: Flags of the launcher that mean nothing here, with what they are when they are not given.
_FOREIGN: dict[str, Any] = {
    "rows": None,
    "datasets": None,
    "reference": None,
    "inception_weights": None,
    "extractor": None,
    "workers": None,
    "gpus": None,
    "cancel": False,
    "slurm": [],
}


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The command line, resolved and checked."""

    out: Path
    data_root: Path
    plan: FiniteDifferencePlan
    chosen: list[Trial]


def launch_parts(args: argparse.Namespace) -> int:
    """Run the grid for the launcher's arguments; returns 0, or 1 where a trial failed.

    Raises ValueError or OSError, in one line, for bad input, before any work.
    """
    request = _resolve(args)
    store = StageStore(request.out / "stages")
    if args.dry_run or args.status:
        for trial in request.chosen:
            state, message = trial_state(trial, request.out, store)
            digest = f"  {trial.stage.digest}" if args.dry_run else ""
            print(f"{state.upper():<9}{digest}  {trial.name}" + (f": {message}" if message else ""))
        for skipped in request.plan.skipped:
            print(f"SKIPPED    {skipped['name']}: {skipped['reason']}")
        return 0
    request.out.mkdir(parents=True, exist_ok=True)
    with launcher_lock(request.out):
        if save_plan(request.plan, request.out):
            mark_stale(request.out)
        return _run(request, store, retry_failed=args.retry_failed)


def _resolve(args: argparse.Namespace) -> _Request:
    for flag, absent in _FOREIGN.items():
        if getattr(args, flag) != absent:
            raise ValueError(
                f"--{flag.replace('_', '-')} means nothing to --grid {FINITE_DIFFERENCE}; "
                "leave it out"
            )
    if args.executor not in ("auto", "inline"):
        raise ValueError(
            f"--executor {args.executor}: --grid {FINITE_DIFFERENCE} runs in this process; inline"
        )
    cuda = torch.cuda.is_available()
    device = args.device if args.device != "auto" else ("cuda" if cuda else "cpu")
    if device == "cuda" and not cuda:
        raise ValueError("--device cuda: no CUDA device is available; use cpu or auto")
    for flag in ("seeds", "threads"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} {value}: must be at least 1")
    parts = _parts(args.parts)
    out = (args.out or Path("runs") / FINITE_DIFFERENCE).resolve()
    existing = load_plan(out)
    budget = args.budget or ("auto" if existing is None else existing.budget)
    budget = budget if budget != "auto" else "quick"
    overrides = parse_overrides(args.set, Effort)
    effort = dataclasses.replace(EFFORTS[budget], **overrides)
    if (out / "grid.json").exists():
        raise ValueError(f"--out {out} holds the report of another grid; choose another")
    data_root = (args.data_root or out / "data").resolve()
    files, images, skipped = _data(parts, data_root)
    trials = build_trials(
        effort,
        parts,
        seeds=args.seeds,
        files=files,
        images=images,
        place={"device": device, "threads": args.threads or usable_cores()},
    )
    plan = FiniteDifferencePlan(
        budget=budget,
        overrides=overrides,
        data_root=os.path.relpath(data_root, out),
        trials=trials,
        skipped=skipped,
    )
    known = {trial.name for trial in trials}
    plan = plan if existing is None else existing.merged(plan, out)
    chosen = [trial for trial in plan.trials if trial.name in known]
    if args.only is not None:
        patterns = [part.strip() for part in args.only.split(",")]
        chosen = [t for t in chosen if any(fnmatchcase(t.name, p) for p in patterns)]
        if not chosen:
            raise ValueError(
                f"--only {args.only} matches no trial; there are: {', '.join(sorted(known))}"
            )
    return _Request(out=out, data_root=data_root, plan=plan, chosen=chosen)


def _parts(text: str | None) -> list[str]:
    if text is None:
        return list(PARTS)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"--parts {part}: unknown; known: {', '.join(PARTS)}")
    if not parts:
        raise ValueError(f"--parts names none; known: {', '.join(PARTS)}")
    return parts


def _data(
    parts: list[str], data_root: Path
) -> tuple[dict[str, str], dict[str, str | None], Skipped]:
    """Return the UCI tables and the images that the parts find, and what they do without."""
    files: dict[str, str] = {}
    images: dict[str, str | None] = {}
    skipped: Skipped = []
    if "epsilon" in parts:
        files, skipped = uci_files(data_root)
    of_images = [part for part in ("flow", "implicit") if part in parts]
    if of_images:
        images, absent = image_sets(data_root)
        if absent is not None:
            skipped += [
                {"part": part, "name": f"{part}/mnist", "reason": absent} for part in of_images
            ]
    return files, images, skipped


def _run(request: _Request, store: StageStore, *, retry_failed: bool) -> int:
    out, plan = request.out, request.plan
    failed: list[str] = []
    todo: list[Trial] = []
    for trial in request.chosen:
        state, message = trial_state(trial, out, store)
        if state in ("failed", "diverged") and not retry_failed:
            failed.append(trial.name)
            print(f"failed before: {trial.name}: {message} (--retry-failed runs it again)")
        elif state != "done":
            clear_failure(out, trial.job_name)
            todo.append(trial)
    print(f"budget: {plan.budget} — {EFFORT_NOTES[plan.budget]}", flush=True)
    print(
        f"grid {FINITE_DIFFERENCE}: {len(request.chosen)} trials, "
        f"{len(request.chosen) - len(todo)} of them settled; one after another, because "
        f"their times are compared; results in {os.path.relpath(out)}",
        flush=True,
    )
    for skipped in plan.skipped:
        print(f"skipped: {skipped['name']}: {skipped['reason']}")
    if todo:
        mark_stale(out)
    else:
        print("nothing to do: every trial is settled")
    began = time.monotonic()
    for number, trial in enumerate(todo, 1):
        say = _Lines(began, f"{number}/{len(todo)} {trial.name}")
        say("started")
        try:
            store.run(trial.stage, _execution(trial, request, say))
        except Exception as error:
            # Whatever it is, it is put on record, and the other trials do not depend on it.
            failed.append(trial.name)
            record_failure(out, trial.job_name, error)
            say(f"FAILED: {error}")
        else:
            say("done")
    page = refresh_report(out, _build)
    print(f"report: {os.path.relpath(page)}")
    if failed:
        print(f"{len(failed)} of {len(request.chosen)} trials did not finish; the report says why")
    return 1 if failed else 0


def _build(out: Path) -> Path:
    # Imported here: the figures' libraries would slow down every error.
    from ablations.studies.finite_difference.report import build_finite_difference_report

    return build_finite_difference_report(out)


class _Lines:
    """Says what a trial does, its progress now and then."""

    def __init__(self, began: float, title: str) -> None:
        self._began, self._title = began, title
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {self._title}: {text}", flush=True)

    def progress(self, fraction: float, text: str) -> None:
        if time.monotonic() - self._last >= _PROGRESS_EVERY_S:
            self._last = time.monotonic()
            self(f"{100 * fraction:.0f} %, {text}")


def _execution(
    trial: Trial, request: _Request, say: _Lines
) -> Callable[[Path], tuple[dict[str, Any], list[Path]]]:
    def execute(directory: Path) -> tuple[dict[str, Any], list[Path]]:
        settings = trial.settings
        torch.set_num_threads(settings["threads"])
        more = _FOLDERS[trial.kind](request) if trial.kind in _FOLDERS else ()
        peak, started = PeakMemory(settings["device"]), time.perf_counter()
        with precision_context("fp32"):
            result, files = RUNS[trial.kind](settings, directory, say.progress, *more)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        result["conditions"] = conditions(
            settings["device"],
            threads=settings["threads"],
            compile=settings.get("compile", False),
            # Parts that measure memory themselves set the mark back.
            peak_memory=None if "peak_bytes" in result else peak.bytes(),
        ) | {"load_average": load}
        result["trial_s"] = time.perf_counter() - started
        return result, files

    return execute
