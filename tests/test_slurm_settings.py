import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.slurm_settings import SlurmSettings, slurm_settings


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
    assert slurm_settings({}, [f"time={text}"]).time == minutes


def test_flags_win_over_the_table_and_what_is_unknown_goes_to_sbatch():
    table = {"partition": "a", "gpus": 2, "setup": ["module load cuda"], "mail-user": "me@here"}
    settings = slurm_settings(table, ["partition=b", "memory=32G", "nice=100"])
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
        ("account=", "slurm account = '' must be a text"),
    ],
)
def test_bad_values_are_named(pair, message):
    with pytest.raises(ValueError, match="slurm") as caught:
        slurm_settings({}, [pair])
    assert message in str(caught.value)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers() | st.booleans()))
def test_any_table_gives_settings_or_a_value_error(table):
    with contextlib.suppress(ValueError):
        settings = slurm_settings(table, [])
        assert "slurm_time" in settings.parameters(threads=1, cuda=False, code=Path("/code"))
