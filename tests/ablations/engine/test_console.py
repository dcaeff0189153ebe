import time

from resolved import context, whole_jobs
from sleeping import Sleep

from ablations.engine import console
from ablations.engine.console import FractionReporter, ProgressReporter
from ablations.engine.context import Context
from ablations.engine.progress import progress_path
from ablations.pipeline.manifest import load_manifest
from scorekit.files import write_json


def test_lines_say_what_starts_ends_and_fails(finished, tmp_path, capsys):
    jobs = whole_jobs(load_manifest(finished / "out").units)
    context = Context(
        out=tmp_path, data_root=tmp_path, device="cpu", threads=1, compile=False, sampling_batch=4
    )
    with ProgressReporter(jobs, context, terminal=False) as reporter:
        reporter.started(jobs[0])
        path = progress_path(tmp_path, jobs[0].name)
        path.parent.mkdir()
        now = time.time()
        record = {"fraction": 0.5, "text": "half way", "updated": now}
        write_json(path, record | {"began": now, "began_fraction": 0.0})
        reporter.tick()
        reporter.finished(jobs[0])
        reporter.started(jobs[1])
        reporter.failed(jobs[1], "no luck")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("] ")[1].split(":")[0] for line in lines] == [
        "started",
        "done",
        "started",
        "FAILED",
    ]
    assert lines[-1].endswith("no luck")


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 45.0, 46.0, 80.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with FractionReporter() as report:
        for fraction in (0.1, 0.5, 0.6, 0.9):
            report(fraction, "steps")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[   45 s] 50 %; steps", "[   80 s] 90 %; steps"]


def test_a_job_that_begins_again_from_earlier_is_not_behind_the_start(tmp_path, capsys):
    job = Sleep(called="nap")
    reporter = ProgressReporter([job], context(tmp_path), terminal=False)
    reporter.started(job)
    path = progress_path(tmp_path, job.name)
    path.parent.mkdir()
    for fraction in (0.6, 0.4):  # the last word of a killed run, and the first of the next
        record = {"fraction": fraction, "text": "", "updated": 0.0}
        write_json(path, record | {"began": 0.0, "began_fraction": 0.0})
        assert reporter._fraction()[0] == 0.0
