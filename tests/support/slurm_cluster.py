"""A real Slurm of two virtual nodes with accounting, in one directory, for the launcher's tests.

Every daemon is a foreground child on the loopback interface at free ports; no systemd, no cgroups,
no root. Options as in the manual pages of Slurm 22.05 (slurm.conf, slurmdbd.conf), munged and
mariadbd.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Addresses of the loopback interface in hexadecimal: valid as node names, and every resolver
# takes them for what they are, so that tasks on "two nodes" find each other without /etc/hosts.
NODES = ("0x7f000001", "0x7f000002")
CPUS_PER_NODE = 4
MEMORY_MB_PER_NODE = 8000
GRACE_SECONDS = 10  # between the signal to a preempted job in "low" and its requeue

DEBIAN_PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core"
_DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo", "sacct", "sacctmgr")
_START_SECONDS, _CLIENT_SECONDS, _TAIL_LINES = 60, 60, 15

_SLURM_CONF = """
ClusterName=itest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start once its old credential has run out: after 5 s, not 2 min.
AuthInfo=socket={directory}/munge/socket,cred_expire=5
StateSaveLocation={directory}/slurmctld
SlurmdSpoolDir={directory}/slurmd-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
DependencyParameters=kill_invalid_depend
EnforcePartLimits=ALL
JobRequeue=1
KillWait=2
MessageTimeout=60
BatchStartTimeout=60
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={directory}/munge/socket
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP DefaultTime=5 MaxTime=60
PartitionName=test Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high PriorityTier=2 PreemptMode=OFF
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "RealMemory={memory} State=UNKNOWN"
)
_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser={user}
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd_port}
StorageUser=slurm
StorageLoc=slurm_acct_db
"""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = _START_SECONDS) -> None:
    """Return as soon as ``condition`` holds; TimeoutError names ``what`` if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def processes() -> list[tuple[int, str, set[str]]]:
    """The id, name and environment ("NAME=value") of every process that may be looked at."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().decode(errors="replace")
                name = (entry / "comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # ended meanwhile, or somebody else's
            found.append((int(entry.name), name, set(variables.split("\0"))))
    return sorted(found, key=lambda process: process[0])


class SlurmCluster:
    """A Slurm that runs while the ``with`` block does; ``directory``: private, with a short path.

    Partitions (60 min at most, 5 by default): ``test``, the default; ``low``, whose jobs are
    requeued when one in ``high`` needs their place. The nodes are called ``NODES``. RuntimeError
    with the ends of the logs when a daemon does not start.
    """

    def __init__(self, directory: Path) -> None:
        # A job's step listens there; the system allows its socket's name 107 bytes.
        step = directory / f"slurmd-{NODES[0]}" / f"{NODES[0]}_99999.{2**32 - 1}"
        if len(os.fsencode(step)) > 107:
            raise ValueError(f"directory {directory}: its path must be shorter for {step.name}")
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_"))
        }
        self.environment["SLURM_CONF"] = str(directory / "etc" / "slurm.conf")
        self.environment["PATH"] = _search_path()
        self._node_ports: dict[str, int] = {}
        self._kept: dict[str, list[_Kept]] = {}

    @staticmethod
    def missing() -> list[str]:
        """The names of the programs it needs and that are not installed."""
        return [
            name for name in (*_DAEMONS, *_CLIENTS) if not shutil.which(name, path=_search_path())
        ]

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException as error:
            self.stop()
            if not isinstance(error, Exception):
                raise
            raise RuntimeError(f"Slurm did not start: {error}\n{self.log_tails()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill every daemon and every process of every job."""
        for name in reversed(list(self._kept)):
            for kept in self._kept.pop(name):
                kept.kill_all()

    def run(self, *command: str, check: bool = True) -> str:
        """The standard output of a client (squeue, ...); RuntimeError if it fails and ``check``."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=_CLIENT_SECONDS
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What ``scontrol show job`` says of one job, by its names (JobState, Restarts, ...)."""
        words = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def accounted(self, job_id: str) -> str:
        """The state of a job in the accounting's books (sacct), "" while it is not in them."""
        fields = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=State")
        return self.run(*fields, "--jobs", job_id).strip()

    def wait_for(self, job_id: str, *states: str, seconds: float = 60) -> None:
        """Wait until a job is in one of ``states`` (JobState); TimeoutError says what it is in."""
        try:
            wait_until(lambda: self.job(job_id)["JobState"] in states, " or ".join(states), seconds)
        except TimeoutError as error:
            shown = self.run("scontrol", "show", "job", job_id)
            raise TimeoutError(f"{error}\n{shown}\n{self.log_tails()}") from None

    def pids(self, job_id: str, tasks: bool = False) -> list[int]:
        """The process ids of a running job ("7", or "7_1" of an array), batch script included.

        With ``tasks`` only those that srun started: for submitit, the Python processes.
        """
        job, _, element = job_id.partition("_")
        wanted = {f"SLURM_CONF={self.environment['SLURM_CONF']}"}
        if element:
            wanted |= {f"SLURM_ARRAY_JOB_ID={job}", f"SLURM_ARRAY_TASK_ID={element}"}
        else:
            wanted |= {f"SLURM_JOB_ID={job}"}
        return [
            pid
            for pid, name, variables in processes()
            if wanted <= variables
            and name != "slurmstepd"
            and (not tasks or any(variable.startswith("SLURM_STEP_ID=") for variable in variables))
        ]

    def start_node(self, name: str = NODES[0], *options: str) -> None:
        """Start a node's slurmd and wait until the controller can use the node."""
        self._keep(f"slurmd-{name}", "slurmd", "-D", "-N", name, *options)
        self._wait_for_daemon(f"slurmd-{name}", lambda: _listens(self._node_ports[name]))
        self._wait_for_node(name, "idle", "mixed", "allocated")

    def kill_node(self, name: str = NODES[0], *, jobs: bool = False) -> None:
        """SIGKILL a node's slurmd; with ``jobs`` also all that runs on it, as a loss of power does.

        The controller learns of it from ``set_node("down", name)``, or by itself minutes later.
        """
        if jobs:
            for kept in self._kept.pop(f"slurmd-{name}"):
                kept.kill_all()
        else:
            self._kept[f"slurmd-{name}"][-1].kill_daemon()

    def set_node(self, state: str, name: str = NODES[0]) -> None:
        """``scontrol update`` a node's state: "down" (requeues its jobs), "resume", "drain"."""
        self.run("scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test")

    def kill_controller(self) -> None:
        """SIGKILL slurmctld: clients get no answer, jobs go on.

        It saves its state at most 5 s late: what it learnt later than that may be lost.
        """
        self._kept["slurmctld"][-1].kill_daemon()

    def start_controller(self, *options: str) -> None:
        """Start slurmctld, from its saved state if there is one, and wait until it answers."""
        self._keep("slurmctld", "slurmctld", "-D", *options)
        self._wait_for_daemon(
            "slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False)
        )

    def log_tails(self) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for log in sorted((self.directory / "log").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            parts.append("\n".join([f"--- {log.name}", *lines]))
        return "\n".join(parts)

    def _start(self) -> None:
        directory = self.directory
        for name in ("etc", "munge", "slurmctld", "log", "db", *(f"slurmd-{n}" for n in NODES)):
            (directory / name).mkdir(mode=0o755)
        munge, ports = directory / "munge", _free_ports(3 + len(NODES))
        values = {
            "directory": directory,
            "host": socket.gethostname().split(".")[0],
            "user": pwd.getpwuid(os.getuid()).pw_name,  # whatever LOGNAME says
            "grace": GRACE_SECONDS,
            "cpus": CPUS_PER_NODE,
            "memory": MEMORY_MB_PER_NODE,
            **dict(zip(("mariadbd_port", "slurmdbd_port", "slurmctld_port"), ports, strict=False)),
        }
        self._node_ports = dict(zip(NODES, ports[3:], strict=True))
        nodes = [
            _NODE.format(name=name, port=port, **values) for name, port in self._node_ports.items()
        ]
        for path, data in (
            (munge / "key", random.SystemRandom().randbytes(128)),
            (directory / "etc" / "slurmdbd.conf", _SLURMDBD_CONF.format(**values).encode()),
            (
                directory / "etc" / "slurm.conf",
                _SLURM_CONF.format(nodes="\n".join(nodes), **values).encode(),
            ),
        ):
            path.touch(mode=0o600)
            path.write_bytes(data)

        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        # --force: it is content that the directories above are closed to other users.
        self._keep("munged", "munged", "-F", "--force", f"--log-file={munge / 'log'}", *options)
        # No system tables, hence no bootstrap: accounts are not checked on this private server.
        self._keep(
            *("mariadbd", "mariadbd", "--no-defaults", f"--user={values['user']}"),
            *(f"--datadir={directory / 'db'}", f"--socket={directory / 'db.socket'}"),
            *("--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={ports[0]}"),
            *("--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M"),
            "--innodb-lock-wait-timeout=900",
        )
        self._wait_for_daemon("munged", (munge / "socket").exists)
        self._wait_for_daemon("mariadbd", (directory / "db.socket").exists)
        self._keep("slurmdbd", "slurmdbd", "-D")
        self._wait_for_daemon("slurmdbd", lambda: _listens(ports[1]))
        self.run("sacctmgr", "--immediate", "add", "cluster", "itest")
        for name in NODES:
            self._keep(f"slurmd-{name}", "slurmd", "-D", "-N", name, "-c")
        self.start_controller("-c")
        for name in NODES:
            self._wait_for_node(name, "idle")

    def _wait_for_node(self, name: str, *states: str) -> None:
        fields = ("sinfo", "--noheader", "--partition=test", "--nodes", name, "--format=%T")
        wait_until(lambda: self.run(*fields).strip() in states, f"{name} is {' or '.join(states)}")

    def _wait_for_daemon(self, name: str, answers: Callable[[], bool]) -> None:
        def answers_or_ended() -> bool:
            if not self._kept[name][-1].daemon_runs():
                raise RuntimeError(f"{name} ended by itself")
            return answers()

        wait_until(answers_or_ended, f"{name} answers")

    def _keep(self, name: str, *command: str) -> None:
        log = self.directory / "log" / f"{name}.log"
        self._kept.setdefault(name, []).append(_Kept(command, self.environment, log))


class _Kept:
    """A daemon under ``keeper.py``, which takes all its family along when this process dies."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        keeper = Path(__file__).with_name("keeper.py")
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-S", keeper, str(os.getpid()), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as pipe:
            self.pid = int(pipe.readline())

    def daemon_runs(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def kill_daemon(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.daemon_runs(), f"process {self.pid} ends")

    def kill_all(self) -> None:
        self._keeper.terminate()
        self._keeper.wait(timeout=_CLIENT_SECONDS)


def _search_path() -> str:
    """PATH with the folders where a normal user's lacks Debian's daemons."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    """Free TCP ports below those that Linux hands out by itself, lest one be taken meanwhile."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 12000):
        if len(found) < count and not _taken(port):
            found.append(port)
    return found


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
