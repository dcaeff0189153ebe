"""What a user may say about Slurm: ``--slurm key=value``, or a grid file's table ``[slurm]``.

Either may say something of one kind of job only: ``--slurm train.gpus=8``, ``[slurm.train]``.
"""

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Kinds of jobs as far as their resources go: all that is no training and no report is sampled or
#: measured.
JOB_KINDS = ("train", "evaluate", "report")
#: Slurm may send the warning up to a minute early, and a job needs a minute to start.
_SHORTEST_MIN = 3
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d+))?(?::(?P<seconds>\d+))?")
#: Options of sbatch that the launcher itself relies on.
_OURS = {
    *("array", "dependency", "job-name", "output", "error", "open-mode", "signal", "wrap"),
    *("nodes", "ntasks", "ntasks-per-node", "requeue", "no-requeue", "kill-on-invalid-dep"),
    *("ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket"),
    # sbatch would not answer as it does, or at once, or jobs not find what they are given.
    *("wait", "parsable", "quiet", "test-only", "help", "usage", "version", "export"),
}
#: Options of sbatch that are settings of the launcher under another name.
_OWN_NAME = {"mem": "memory", "cpus-per-task": "cpus"}
#: Options of sbatch that ask for GPUs in a way that the launcher does not follow.
_OTHER_GPUS = ("gpus-per-socket", "tres-per-task", "tres-per-job", "tres-per-node")
_GRES = re.compile(r"(?:gres/)?gpu(?::(?P<type>[\w.-]+?))??(?:[:=](?P<n>\d+))?")
_GPUS = re.compile(r"(?:[\w.-]+:)?(?P<n>\d+)")
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
    threads: int | None = None  # of a job's process; None: those of the launcher's context

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

        for option, value in self.extra.items():
            n = _gpus(option, value)
            if n is not None and self.gpus not in (None, n):
                raise ValueError(
                    f"slurm {option} = {value!r} gives a job {n} GPU(s), and gpus = {self.gpus}: "
                    "both must be the same number"
                )

    @property
    def warning_s(self) -> int:
        """Seconds before the end at which a job is told to save its state and go back to the queue.

        Half of them are left where a job is in the middle of what cannot be interrupted.
        """
        return 120 if self.time >= 10 else 40

    def threads_of(self, default: int) -> int:
        """Return the threads of a job's process, where ``default`` is what the launcher has."""
        return self.threads or default

    @property
    def asks_gpus(self) -> bool:
        """Whether ``extra`` asks for GPUs, as clusters demand that know no --gpus-per-node."""
        return not {"gpus-per-node", "gpus-per-task"}.isdisjoint(self.extra) or (
            "gpu" in str(self.extra.get("gres", ""))
        )

    def parameters(self, *, threads: int, cuda: bool, code: Path) -> dict[str, Any]:
        """Return submitit's parameters of a job that runs the code in the folder ``code``."""
        named = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_mem": self.memory,
            # Unless the user says it in the cluster's own way.
            "slurm_gpus_per_node": (self.gpus or 1) if cuda and not self.asks_gpus else None,
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
                _python_path(code),
            ],
            # A job whose node fails goes back to the queue; one that waits for a failed one goes.
            "slurm_additional_parameters": {
                "requeue": True,
                "kill-on-invalid-dep": "yes",
                **self.extra,
            },
        }


def _python_path(code: Path) -> str:
    """Return the line of shell that lets Python find the packages in a folder of any name."""
    line = "export PYTHONSAFEPATH=1 PYTHONPATH={}${{PYTHONPATH:+:$PYTHONPATH}}"
    if ":" in str(code):  # which separates folders there, but not in the present one's name
        return f"cd {shlex.quote(str(code))} && {line.format('.')}"
    return line.format(shlex.quote(str(code)))


_FIELDS = {
    f.name: f for f in dataclasses.fields(SlurmSettings) if f.name not in ("extra", "threads")
}


def slurm_settings(
    table: dict[str, Any], pairs: list[str], *, gpus: int | None = None
) -> dict[str, SlurmSettings]:
    """Return the settings of each of :data:`JOB_KINDS`.

    ``table`` is a grid file's ``[slurm]``, ``pairs`` are ``key=value`` texts, ``gpus`` is what the
    flag ``--gpus`` says. What is said of one kind wins over what is said of all, and of either the
    later of table, texts and flag. The report has no GPU, and one core. Keys that
    :class:`SlurmSettings` has not are options of sbatch. Raises ValueError where a text has no "="
    or a value is none of its key.
    """
    said: dict[str, dict[str, Any]] = {"": {}, **{kind: {} for kind in JOB_KINDS}}
    for key, value in table.items():
        if key in JOB_KINDS and isinstance(value, dict):
            said[key] |= value
        else:
            said[""][key] = value
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--slurm {pair!r} is not of the form key=value")
        kind, _, option = key.strip().rpartition(".")
        if kind not in said:
            raise ValueError(
                f"--slurm {pair!r}: {kind!r} is no kind of job; known: {', '.join(JOB_KINDS)}"
            )
        said[kind][option] = text.strip()
    common = said[""] | ({} if gpus is None else {"gpus": gpus})
    _settings(common)
    found = {}
    for kind in JOB_KINDS:
        try:
            found[kind] = _settings_of(kind, common, said[kind])
        except ValueError as error:
            raise ValueError(f"[slurm.{kind}]: {error}") from error
    return found


def _settings_of(kind: str, common: dict[str, Any], own: dict[str, Any]) -> SlurmSettings:
    """Return the settings of a kind of job by what is said of all kinds, and of this one."""
    inherited = dict(common)
    if kind == "report":
        if asked := [key for key, value in own.items() if _asks_gpus(key, value)]:
            raise ValueError(f"slurm {asked[0]}: the report has no GPU; leave it out")
        inherited = {k: v for k, v in common.items() if not _asks_gpus(k, v)} | {"cpus": 1}
    elif any(_gpus(key.replace("_", "-"), value) is not None for key, value in own.items()):
        inherited.pop("gpus", None)
    return _settings(inherited | own)


def _asks_gpus(key: str, value: Any) -> bool:
    return "gpu" in key or (key not in _FIELDS and "gpu" in str(value))


def _settings(values: dict[str, Any]) -> SlurmSettings:
    known = {key: _value(key, value) for key, value in values.items() if key in _FIELDS}
    extra = {}
    for key, value in values.items():
        if key in _FIELDS:
            continue
        if key in JOB_KINDS:
            raise ValueError(
                f"slurm {key} = {value!r} must be a table [slurm.{key}], or --slurm {key}.KEY=VALUE"
            )
        if not re.fullmatch(r"[a-z][a-z0-9_-]+", key):
            raise ValueError(f"slurm {key!r} is no option of sbatch; its long names are right")
        option = key.replace("_", "-")
        if option in _OURS:
            raise ValueError(f"slurm {key}: the launcher sets this itself; leave it out")
        if option in _OWN_NAME:
            raise ValueError(f"slurm {key}: it is called {_OWN_NAME[option]} here")
        if option in _OTHER_GPUS:
            raise ValueError(f"slurm {key}: ask for GPUs by gpus, gres or gpus-per-node")
        if option in ("clusters", "cluster"):
            raise ValueError(
                f"slurm {key} = {value!r}: only the queue of the cluster here is watched; start "
                "the launcher on a machine of that cluster, without this key"
            )
        if isinstance(value, list | dict) or (isinstance(value, str) and "\n" in value):
            raise ValueError(f"slurm {key} = {value!r} must be one text, number or true")
        extra[option] = value
    if known.get("gpus") is None:
        counts = [n for option, value in extra.items() if (n := _gpus(option, value)) is not None]
        known["gpus"] = counts[0] if counts else (1 if "gpus-per-task" in extra else None)
    return SlurmSettings(**known, extra=extra)


def _gpus(option: str, value: Any) -> int | None:
    """Return how many GPUs of a job an option of sbatch asks for, or None; ValueError if unclear.

    Each of a job's tasks has one.
    """
    text = str(value)
    if option == "gres":
        parts = [part for part in text.split(",") if re.match(r"(gres/)?gpu\b", part)]
        if not parts:
            return None
        match = _GRES.fullmatch(parts[0]) if len(parts) == 1 else None
        wanted = "gpu:N or gpu:TYPE:N"
    elif option in ("gpus-per-node", "gpus-per-task"):
        match = None if isinstance(value, bool) else _GPUS.fullmatch(text)
        wanted = "N or TYPE:N"
    else:
        return None
    n = int(match["n"] or 1) if match else 0
    if option == "gpus-per-task":
        if n != 1:
            raise ValueError(
                f"slurm gpus-per-task = {value!r} must be 1: each task has one; gpus = N is how "
                "many a job has"
            )
        return None
    if n < 1:
        raise ValueError(f"slurm {option} = {value!r} must be of the form {wanted}")
    return n


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
