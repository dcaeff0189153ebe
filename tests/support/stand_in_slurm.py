"""Clients of Slurm that only write down what they are asked, for tests without a cluster."""

import os
import re
from pathlib import Path

_SBATCH = """#!/bin/sh
n=$(($(cat "$STATE/n" 2>/dev/null || echo 100) + 1)); echo $n > "$STATE/n"
cp "$1" "$STATE/script.$n"; env > "$STATE/environment.$n"
echo "Submitted batch job $n"
"""
#: Every job of every array waits.
_SQUEUE = """#!/bin/sh
env > "$STATE/environment.squeue"
for a in "$@"; do case $a in --name=*) name=${a#--name=};; esac; done
for script in "$STATE"/script.*; do
  [ -f "$script" ] || continue
  id=${script##*.}
  if [ -n "$name" ]; then
    grep -qx -- "#SBATCH --job-name=$name" "$script" && echo $id
    continue
  fi
  last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
  if [ -z "$last" ]; then echo "$id|N/A|PENDING|Priority"; continue; fi
  for i in $(seq 0 $last); do echo "$id|$i|PENDING|Priority"; done
done
"""
_SCRIPTS = {
    "sbatch": _SBATCH,
    "squeue": _SQUEUE,
    "scontrol": '#!/bin/sh\necho "MaxArraySize            = 1001"\n',
    "scancel": '#!/bin/sh\necho "$@" >> "$STATE/cancelled"\n',
    "sacct": "#!/bin/sh\n",
    "srun": "#!/bin/sh\n",
}


class StandInSlurm:
    """The clients in ``folder``; nothing that is submitted ever starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "STATE": str(folder),
        }
        for name, text in _SCRIPTS.items():
            self.replace(name, text)

    def replace(self, name: str, text: str) -> None:
        """Put another script in a client's place."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def submitted(self) -> list[dict[str, str]]:
        """The options of each submission, in order: by their long names, flags as ""."""
        return [_options(path.read_text()) for path in self._files("script")]

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables that each submission was made with."""
        return [_variables(path.read_text()) for path in self._files("environment")]

    @property
    def cancelled(self) -> list[str]:
        """The ids that scancel was given."""
        path = self.folder / "cancelled"
        return path.read_text().split() if path.exists() else []

    def _files(self, kind: str) -> list[Path]:
        found = [p for p in self.folder.glob(f"{kind}.*") if p.suffix[1:].isdigit()]
        return sorted(found, key=lambda path: int(path.suffix[1:]))


def _options(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def _variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
