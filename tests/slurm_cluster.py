"""A real Slurm for tests: every daemon a child of this process, in a private folder, on loopback.

Two virtual nodes of four cores each, whatever the machine has; accounting in a MariaDB of its own;
partitions ``test`` and, for preemption, ``low`` and ``high``.
"""

import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_BINARIES = (
    *("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"),
    *("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct", "sacctmgr", "sinfo"),
)
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_START_S = 60
NODES = ("node0", "node1")


class SlurmCluster:
    """Starts on entry, with the node idle, and stops on exit; RuntimeError with logs if it cannot.

    ``environment`` is what clients, and programs that call them, are to run in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment = clean | {
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": _PATH,
        }

    @staticmethod
    def missing() -> list[str]:
        """Return the names of the programs that this machine lacks."""
        return [name for name in _BINARIES if shutil.which(name, path=_PATH) is None]

    def __enter__(self) -> "SlurmCluster":
        try:
            self._configure()
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._children:
            subprocess.run(
                ["scancel", "--me"], env=self.environment, capture_output=True, timeout=20
            )
            time.sleep(0.5)
        for child in reversed(self._children.values()):
            child.kill()
            child.wait()

    def run(self, *command: str) -> str:
        """Run a client; return what it printed, RuntimeError where it fails."""
        run = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)}: {run.stderr.strip()}")
        return run.stdout

    def pids(self, job: str) -> list[int]:
        """Return the processes of a running job that are Python's, from their environments."""
        raw = self.run("squeue", "-h", "-j", job, "-o", "%A").strip()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                of_job = f"SLURM_JOB_ID={raw}\0".encode() in path.read_bytes()
                name = (path.parent / "comm").read_text()
            except OSError:  # it ended, or is another user's
                continue
            if of_job and name.startswith("python"):
                found.append(int(path.parent.name))
        return found

    def kill_nodes(self) -> None:
        """Kill -9 every slurmd; what their jobs' processes do then is theirs."""
        for node in NODES:
            self._children.pop(node).kill()

    def start_nodes(self) -> None:
        """Start every slurmd."""
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)

    def set_nodes(self, state: str) -> None:
        """Set every node's state ("down", "resume"), as an administrator does."""
        names = f"NodeName={','.join(NODES)}"
        self.run("scontrol", "update", names, f"State={state}", "Reason=test")

    def wait_until_idle(self) -> None:
        """Wait until every node would take jobs."""
        self._wait("idle nodes", lambda: self._node_states() == {"idle"})

    def kill_controller(self) -> None:
        """Kill -9 slurmctld."""
        self._children.pop("slurmctld").kill()

    def start_controller(self) -> None:
        """Start slurmctld from its saved state."""
        self._start("slurmctld", "slurmctld", "-D")

    def _node_states(self) -> set[str]:
        run = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%t"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return set(run.stdout.split())

    def _configure(self) -> None:
        folder, user = self.folder, getpass.getuser()
        for name in ("etc", "munge", "ctld", "log", "db", *NODES):
            (folder / name).mkdir(parents=True, mode=0o755)
        self.key, self.socket = folder / "munge" / "key", folder / "munge" / "sock"
        self.key.write_bytes(secrets.token_bytes(128))
        self.key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        self.ports = dict(
            zip(("ctld", "dbd", "db", *NODES), _free_ports(3 + len(NODES)), strict=True)
        )
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[node]} "
            "CPUs=4 RealMemory=32000 State=UNKNOWN"
            for node in NODES
        )
        (folder / "etc" / "slurm.conf").write_text(f"""
ClusterName=itest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.ports["ctld"]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.socket},cred_expire=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=4000
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
DependencyParameters=kill_invalid_depend
EnforcePartLimits=ALL
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.ports["dbd"]}
AccountingStoragePass={self.socket}
{nodes}
PartitionName=test Nodes=ALL Default=YES DefaultTime=5 MaxTime=2880 State=UP PriorityTier=5 \
PreemptMode=OFF
PartitionName=low Nodes=ALL DefaultTime=5 MaxTime=2880 State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL DefaultTime=5 MaxTime=2880 State=UP PriorityTier=10 PreemptMode=OFF
""")
        accounting = folder / "etc" / "slurmdbd.conf"
        accounting.write_text(f"""
AuthType=auth/munge
AuthInfo=socket={self.socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.ports["dbd"]}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.ports["db"]}
StorageUser=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
""")
        accounting.chmod(0o600)

    def _start_all(self) -> None:
        folder = self.folder
        self._start(
            *("munged", "munged", "-F", f"--key-file={self.key}", f"--socket={self.socket}"),
            *(f"--log-file={folder}/log/munged.log", f"--pid-file={folder}/munged.pid"),
            *(f"--seed-file={folder}/munge/seed", "--force"),
        )
        self._start(
            *("mariadbd", "mariadbd", "--no-defaults", f"--user={getpass.getuser()}"),
            *(f"--datadir={folder}/db", "--skip-grant-tables", "--innodb-log-file-size=8M"),
            *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
            *("--bind-address=127.0.0.1", f"--port={self.ports['db']}"),
            *(f"--socket={folder}/db.sock", f"--pid-file={folder}/db.pid"),
        )
        self._wait("munged", self.socket.exists)
        self._wait("mariadbd", (folder / "db.sock").exists)
        self._start("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self._says("sacctmgr", "-i", "add", "cluster", "itest"))
        self.start_controller()
        self.start_nodes()
        self.wait_until_idle()

    def _says(self, *command: str) -> bool:
        """Return whether a client has an answer."""
        run = subprocess.run(command, env=self.environment, capture_output=True, timeout=60)
        return run.returncode == 0

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )

    def _wait(self, what: str, condition) -> None:
        deadline = time.monotonic() + _START_S
        while not condition():
            dead = [n for n, child in self._children.items() if child.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"{what}: {dead or 'not there'} {self._tails()}")
            time.sleep(0.1)

    def _tails(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted((self.folder / "log").iterdir())
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
