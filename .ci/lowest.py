"""Print pip constraints that pin each dependency to the lowest version pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    bound = re.match(r"([\w.-]+)>=(\d+(?:\.\d+)*)", line)
    if bound is None:
        raise SystemExit(f"pyproject.toml: {line!r} has no lower bound that begins it")
    name, version = bound.groups()
    # At least two numbers: "11" is the first release of the eleventh series, not its last.
    print(f"{name}=={version if '.' in version else version + '.0'}.*")
