"""What a user may say about Slurm: ``--slurm key=value``, or a grid file's table ``[slurm]``."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Slurm may send the warning up to a minute early, and a job needs a minute to start.
_SHORTEST_MIN = 3
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d+))?(?::(?P<seconds>\d+))?")
#: Options of sbatch that the launcher itself relies on.
_OURS = {
    *("array", "dependency", "job-name", "output", "error", "open-mode", "signal", "wrap"),
    *("nodes", "ntasks", "ntasks-per-node", "requeue", "no-requeue", "kill-on-invalid-dep"),
}
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Resources of one job; ValueError for a value out of range, naming the key.

    ``time`` is in minutes; ``gpus`` are those of one job, on a CPU its processes;
    ``array_parallelism`` is how many jobs of an array run at a time. ``setup`` are lines of shell
    before the job, ``extra`` further options of sbatch by their long names.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | None = None  # None: one
    cpus: int | None = None  # None: the threads of a job
    memory: str | None = None  # as sbatch's --mem: "32G"
    time: int = 24 * 60
    array_parallelism: int = 32
    setup: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("gpus", 1), ("cpus", 1), ("array_parallelism", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"slurm {name} = {value} must be at least {least}")
        if self.time < _SHORTEST_MIN:
            raise ValueError(
                f"slurm time = {self.time} minutes must be at least {_SHORTEST_MIN}: a job has to "
                "start, and to be warned before it is ended"
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f"slurm memory = {self.memory!r} must be a size such as 32G")

    @property
    def warning_s(self) -> int:
        """Seconds before the end at which a job is told to save its state and go back to the queue.

        Half of them are left where a job is in the middle of what cannot be interrupted.
        """
        return 120 if self.time >= 10 else 40

    def parameters(self, *, threads: int, cuda: bool, code: Path) -> dict[str, Any]:
        """Return submitit's parameters of a job that runs the code in the folder ``code``."""
        named = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_mem": self.memory,
            "slurm_gpus_per_node": (self.gpus or 1) if cuda else None,
        }
        return {key: value for key, value in named.items() if value is not None} | {
            "slurm_time": self.time,
            # One task per GPU: they are the ranks of a job that trains on several.
            "slurm_ntasks_per_node": self.gpus or 1,
            "slurm_cpus_per_task": self.cpus or threads,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_signal_delay_s": self.warning_s,
            "slurm_stderr_to_stdout": True,
            "slurm_setup": [
                *self.setup,
                # srun does not take it from sbatch any more (since Slurm 22.05).
                f"export SRUN_CPUS_PER_TASK={self.cpus or threads}",
                # The copy of the code comes first, and the folder of the launch not at all.
                f'export PYTHONSAFEPATH=1 PYTHONPATH="{code}${{PYTHONPATH:+:$PYTHONPATH}}"',
            ],
            # A job whose node fails goes back to the queue; one that waits for a failed one goes.
            "slurm_additional_parameters": {
                "requeue": True,
                "kill-on-invalid-dep": "yes",
                **self.extra,
            },
        }


_FIELDS = {f.name: f for f in dataclasses.fields(SlurmSettings) if f.name != "extra"}


def slurm_settings(table: dict[str, Any], pairs: list[str]) -> SlurmSettings:
    """Return the settings of a ``[slurm]`` table with ``key=value`` texts, which win.

    Keys that :class:`SlurmSettings` has not are options of sbatch. Raises ValueError where a text
    has no "=" or a value is none of its key.
    """
    values = dict(table)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--slurm {pair!r} is not of the form key=value")
        values[key.strip()] = text.strip()
    known = {key: _value(key, value) for key, value in values.items() if key in _FIELDS}
    extra = {}
    for key, value in values.items():
        if key in _FIELDS:
            continue
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", key):
            raise ValueError(f"slurm {key!r} is no option of sbatch; its long names are right")
        if key.replace("_", "-") in _OURS:
            raise ValueError(f"slurm {key}: the launcher sets this itself; leave it out")
        if isinstance(value, list | dict) or (isinstance(value, str) and "\n" in value):
            raise ValueError(f"slurm {key} = {value!r} must be one text, number or true")
        extra[key] = value
    return SlurmSettings(**known, extra=extra)


def _value(key: str, value: Any) -> Any:
    if key == "setup":
        lines = value.splitlines() if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"slurm setup = {value!r} must be a list of lines of shell")
        return tuple(lines)
    if key == "time":
        return _minutes(value)
    if key in ("gpus", "cpus", "array_parallelism"):
        if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
            raise ValueError(f"slurm {key} = {value!r} must be a whole number")
        return int(value)
    if isinstance(value, bool | list | dict) or "\n" in str(value) or not str(value):
        raise ValueError(f"slurm {key} = {value!r} must be a text")
    return str(value)


def _minutes(value: Any) -> int:
    """Return minutes, given as a number or in sbatch's forms D-HH:MM and HH:MM:SS."""
    text = str(value)
    match = _TIME.fullmatch(text) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f"slurm time = {value!r} must be minutes, HH:MM:SS or D-HH:MM")
    days, first, second, third = (int(group or 0) for group in match.groups())
    if match["days"] is not None:
        return (days * 24 + first) * 60 + second + (third > 0)
    if match["seconds"] is not None:
        return first * 60 + second + (third > 0)
    return first + (second > 0)  # minutes, or minutes:seconds
