import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.executors.slurm.settings import JOB_KINDS, SlurmSettings, slurm_settings


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:01", 91),
        ("12:00:00", 720),
        ("00:30:30", 31),
        ("1-00", 1440),
        ("2-03:04", 3064),
        ("1-00:00:01", 1441),
    ],
)
def test_times_are_read_as_sbatch_reads_them_and_rounded_up(text, minutes):
    assert slurm_settings({}, [f"time={text}"])["train"].time == minutes


def test_flags_win_over_the_table_and_what_is_unknown_goes_to_sbatch():
    table = {"partition": "a", "gpus": 2, "setup": ["module load cuda"], "mail-user": "me@here"}
    settings = slurm_settings(table, ["partition=b", "memory=32G", "nice=100"])["train"]
    assert (settings.partition, settings.gpus, settings.memory) == ("b", 2, "32G")
    assert settings.extra == {"mail-user": "me@here", "nice": "100"}
    parameters = settings.parameters(threads=3, cuda=True, code=Path("/code"))
    assert parameters["slurm_partition"] == "b"
    assert parameters["slurm_mem"] == "32G"
    assert parameters["slurm_gpus_per_node"] == parameters["slurm_ntasks_per_node"] == 2
    assert parameters["slurm_cpus_per_task"] == 3
    assert parameters["slurm_setup"][:2] == ["module load cuda", "export SRUN_CPUS_PER_TASK=3"]
    assert parameters["slurm_additional_parameters"] == {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "mail-user": "me@here",
        "nice": "100",
    }


def test_what_is_said_of_a_kind_of_job_wins_over_what_is_said_of_all():
    table = {"gpus": 2, "nice": 1, "train": {"nice": 2, "memory": "9G"}}
    settings = slurm_settings(table, ["nice=3", "evaluate.memory=5G", "evaluate.gres=gpu:1"])
    assert list(settings) == list(JOB_KINDS)
    assert [settings[kind].extra["nice"] for kind in JOB_KINDS] == [2, "3", "3"]
    assert [settings[kind].memory for kind in JOB_KINDS] == ["9G", "5G", None]
    assert [settings[kind].gpus for kind in JOB_KINDS] == [2, 1, None]
    flagged = slurm_settings(table, ["train.gpus=8"], gpus=4)
    assert [flagged[kind].gpus for kind in JOB_KINDS] == [8, 4, None]


def test_a_job_on_cuda_has_one_gpu_and_on_a_cpu_none():
    settings = SlurmSettings()
    assert settings.parameters(threads=1, cuda=True, code=Path())["slurm_gpus_per_node"] == 1
    assert "slurm_gpus_per_node" not in settings.parameters(threads=1, cuda=False, code=Path())


def test_the_warning_leaves_time_to_start_and_to_save():
    # Slurm may send it a minute early.
    for minutes in range(3, 30):
        assert 60 * minutes - SlurmSettings(time=minutes).warning_s - 60 >= 60


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("partition", "--slurm 'partition' is not of the form key=value"),
        ("gpus=-1", "slurm gpus = -1 must be at least 1"),
        ("gpus=two", "slurm gpus = 'two' must be a whole number"),
        ("time=2", "slurm time = 2 minutes must be at least 3"),
        ("time=soon", "slurm time = 'soon' must be minutes, HH:MM:SS or D-HH:MM"),
        ("memory=much", "slurm memory = 'much' must be a size such as 32G"),
        ("array_parallelism=0", "slurm array_parallelism = 0 must be at least 1"),
        ("Mail User=me", "slurm 'Mail User' is no option of sbatch"),
        ("dependency=afterok:1", "slurm dependency: the launcher sets this itself; leave it out"),
        ("job_name=mine", "slurm job_name: the launcher sets this itself"),
        ("mem=3G", "slurm mem: it is called memory here"),
        ("cpus_per_task=3", "slurm cpus_per_task: it is called cpus here"),
        ("clusters=other", "slurm clusters = 'other': only the queue of the cluster here is"),
        ("wait=true", "slurm wait: the launcher sets this itself"),
        ("gpus-per-socket=1", "slurm gpus-per-socket: ask for GPUs by gpus, gres or gpus-per-node"),
        ("gpus-per-task=2", "slurm gpus-per-task = '2' must be 1: each task has one; gpus = N"),
        ("gres=gpu:many:2x", "slurm gres = 'gpu:many:2x' must be of the form gpu:N or gpu:TYPE:N"),
        ("gpus-per-node=0", "slurm gpus-per-node = '0' must be of the form N or TYPE:N"),
        ("account=", "slurm account = '' must be a text"),
        ("train.gpus=0", "[slurm.train]: slurm gpus = 0 must be at least 1"),
        ("evaluate.wait=true", "[slurm.evaluate]: slurm wait: the launcher sets this itself"),
        ("sample.gpus=1", "'sample' is no kind of job; known: train, evaluate, report"),
        ("train=2", "slurm train = '2' must be a table [slurm.train]"),
        ("report.gpus=1", "[slurm.report]: slurm gpus: the report has no GPU"),
        ("report.gres=gpu:1", "[slurm.report]: slurm gres: the report has no GPU"),
    ],
)
def test_bad_values_are_named(pair, message):
    with pytest.raises(ValueError, match="slurm") as caught:
        slurm_settings({}, [pair])
    assert message in str(caught.value)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers() | st.booleans()))
def test_any_table_gives_settings_or_a_value_error(table):
    with contextlib.suppress(ValueError):
        for settings in slurm_settings(table, []).values():
            assert "slurm_time" in settings.parameters(threads=1, cuda=False, code=Path("/code"))


@pytest.mark.parametrize(
    ("pair", "gpus"),
    [
        ("gres=gpu:1", 1),
        ("gres=gpu", 1),
        ("gres=gpu:a100", 1),
        ("gres=gpu:a100:4", 4),
        ("gres=gres/gpu:1g.5gb:2", 2),
        ("gres=lscratch:10,gpu:2", 2),
        ("gres=lscratch:10", None),
        ("gpus-per-node=3", 3),
        ("gpus_per_node=v100:3", 3),
        ("gpus-per-task=1", 1),
    ],
)
def test_gpus_are_understood_in_the_cluster_s_own_words_and_asked_for_once(pair, gpus):
    settings = slurm_settings({}, [pair])["train"]
    assert settings.gpus == gpus
    option, _, value = pair.partition("=")
    parameters = settings.parameters(threads=1, cuda=True, code=Path("/code"))
    assert parameters["slurm_additional_parameters"][option.replace("_", "-")] == value
    assert parameters.get("slurm_gpus_per_node") == (None if gpus else 1)
    assert parameters["slurm_ntasks_per_node"] == (gpus or 1)


def test_gpus_in_two_ways_must_agree():
    assert slurm_settings({}, ["gres=gpu:2", "gpus=2"])["train"].gpus == 2
    with pytest.raises(ValueError, match="gives a job 2 GPU\\(s\\), and gpus = 4"):
        slurm_settings({}, ["gres=gpu:2", "gpus=4"])


@pytest.mark.parametrize(
    "name", ["plain", "with space", "2026-11-30T01:51", 'a"b', "a'b", "a$(touch X)b", "a`touch X`b"]
)
@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_python_finds_the_copy_of_the_code_whatever_its_folder_is_called(tmp_path, name, before):
    code = tmp_path / name / "code"
    (code / "ablations").mkdir(parents=True)
    (code / "ablations" / "__init__.py").touch()
    settings = slurm_settings({}, [])["train"]
    setup = settings.parameters(threads=1, cuda=False, code=code)["slurm_setup"]
    python = f"{shlex.quote(sys.executable)} -c 'import ablations; print(ablations.__file__)'"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        ["bash", "-c", "\n".join([*setup, python])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | ({"PYTHONPATH": before} if before else {}),
    )
    assert run.stdout.strip() == str(code / "ablations" / "__init__.py"), run.stderr
    assert not list(tmp_path.rglob("X"))
