"""A user's own code: a Python file that registers what settings then name, by its content.

The file's text goes where the work goes: into OUT, into the manifest's names, into pickled jobs.
A file is known by its name ("mine.py"): another content of that name takes the place of the first.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scorekit.data.store import DataError, KnownDataset, Request, Source
from scorekit.files import write_file


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A Python file: its name, the SHA-256 of its bytes, these bytes and where they were read."""

    name: str
    digest: str
    source: bytes = field(compare=False, repr=False)
    path: str = field(compare=False)


#: What is loaded, by name.
_loaded: dict[str, Plugin] = {}
#: What each of them registered: kind of name, such as "sampler", and name, with its plugin's name.
_owners: dict[tuple[str, str], str] = {}


def read_plugin(path: Path) -> Plugin:
    """Return a file as a plugin, of which nothing is run; ValueError where it cannot be read."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ValueError(f"plugin {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(source).hexdigest()
    return Plugin(name=path.name, digest=digest, source=source, path=str(path.resolve()))


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Run each file, unless it is loaded already; what it registers is then known by its name.

    Raises ValueError, in one line, for a file that is no Python, fails, registers nothing, or
    registers a name that is taken; nothing of it is known then.
    """
    for plugin in plugins:
        if _loaded.get(plugin.name) != plugin:
            _load(plugin)


def unload_plugins() -> None:
    """Forget every plugin, and what they registered."""
    known = registries()
    for kind, name in _owners:
        known[kind].pop(name)
    _owners.clear()
    _loaded.clear()


def joined_plugins(kept: Iterable[Plugin], given: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Return those kept, of which those given replace the ones of their names.

    Raises ValueError where two of those given have one name and another content.
    """
    found = {plugin.name: plugin for plugin in kept}
    new: dict[str, Plugin] = {}
    for plugin in given:
        if (other := new.setdefault(plugin.name, plugin)) != plugin:
            raise ValueError(
                f"plugins {other.path} and {plugin.path} are both called {plugin.name}; rename one"
            )
    return tuple((found | new).values())


def save_plugins(plugins: Iterable[Plugin], out: Path) -> None:
    """Write each file into OUT, under its digest, unless it is there."""
    for plugin in plugins:
        path = _kept(out, plugin.digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, plugin.source)


def kept_plugins(digests: Mapping[str, str], out: Path) -> tuple[Plugin, ...]:
    """Return the files that OUT keeps, of their digests by name; ValueError where one is not so."""
    found = []
    for name, digest in digests.items():
        path = _kept(out, digest)
        plugin = read_plugin(path)
        if plugin.digest != digest:
            raise ValueError(f"plugin {path} was changed; put {name} there as it was")
        found.append(
            Plugin(name=name, digest=digest, source=plugin.source, path=str(path.resolve()))
        )
    return tuple(found)


def plugins_behind(names: Mapping[str, Iterable[str | None]]) -> tuple[tuple[str, str, str], ...]:
    """Return (kind, name, digest of the plugin) of the names, by kind, that plugins registered."""
    found = {
        (kind, name, _loaded[_owners[kind, name]].digest)
        for kind, several in names.items()
        for name in several
        if name is not None and (kind, name) in _owners
    }
    return tuple(sorted(found))


def plugin_digest(kind: str, name: str) -> str | None:
    """Return the digest of the plugin that registered a name, or None where none did."""
    behind = plugins_behind({kind: [name]})
    return behind[0][2] if behind else None


def _kept(out: Path, digest: str) -> Path:
    return out / "plugins" / f"{digest}.py"


def registries() -> dict[str, dict[str, Any]]:
    """Return what names are registered in, by kind: most are called as the settings are."""
    # Imported here: who has no plugin has no need of all of these.
    from scorekit.data.registry import KNOWN
    from scorekit.metrics.spaces import OWN_EXTRACTORS
    from scorekit.models.conditioning import CONDITIONINGS
    from scorekit.models.score_network import ARCHITECTURES
    from scorekit.sampling.registry import SAMPLERS
    from scorekit.techniques.ema_profiles import EMA_KINDS
    from scorekit.techniques.ladder import SCHEDULES, STEP_RULES
    from scorekit.techniques.noise_levels import LOSS_WEIGHTS, NOISE_LEVELS
    from scorekit.training.objectives import TRAINING_OBJECTIVES

    return {
        "architecture": ARCHITECTURES,
        "objective": TRAINING_OBJECTIVES,
        "noise_levels": NOISE_LEVELS,
        "loss_weights": LOSS_WEIGHTS,
        "conditioning": CONDITIONINGS,
        "ema": EMA_KINDS,
        "sampler": SAMPLERS,
        "schedule": SCHEDULES,
        "step_size_rule": STEP_RULES,
        "dataset": KNOWN,
        "extractor": OWN_EXTRACTORS,
    }


def _load(plugin: Plugin) -> None:
    known = registries()
    before = {kind: dict(registry) for kind, registry in known.items()}
    module_name = f"scorekit_plugin_{Path(plugin.name).stem}"
    old_module, modules = sys.modules.get(module_name), set(sys.modules)
    mine = {key for key, owner in _owners.items() if owner == plugin.name}
    try:
        for kind, name in mine:
            known[kind].pop(name)
        others = {kind: dict(registry) for kind, registry in known.items()}
        # Some of what a file defines, such as a dataclass, looks its module up.
        module = sys.modules[module_name] = types.ModuleType(module_name)
        module.__file__ = plugin.path
        _execute(plugin, module)
        _check_alone(plugin, set(sys.modules) - modules)
        for kind, registry in known.items():
            for name, value in others[kind].items():
                if registry.get(name) is not value:
                    raise ValueError(f"plugin {plugin.name}: {kind} = {name!r} is taken")
        new = [(k, name) for k, r in known.items() for name in r if name not in others[k]]
        if not new:
            raise ValueError(f"plugin {plugin.name} registers nothing; known: {', '.join(known)}")
        for kind, name in new:
            if kind == "dataset":
                known[kind][name] = _of_this_version(name, known[kind][name], plugin)
    except BaseException:
        for kind, registry in known.items():
            registry.clear()
            registry.update(before[kind])
        sys.modules.pop(module_name, None)
        if old_module is not None:
            sys.modules[module_name] = old_module
        raise
    for key in mine:
        del _owners[key]
    _owners.update(dict.fromkeys(new, plugin.name))
    _loaded[plugin.name] = plugin


def _execute(plugin: Plugin, module: types.ModuleType) -> None:
    try:
        code = compile(plugin.source, plugin.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"plugin {plugin.name} is not Python: {line}{reason}") from error
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # whatever a stranger's file does
        lines = [
            frame.tb_lineno
            for frame in _frames(error.__traceback__)
            if frame.tb_frame.f_code.co_filename == plugin.path
        ]
        at = f", line {lines[-1]}" if lines else ""
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"plugin {plugin.name}{at}: {type(error).__name__}: {reason}") from error


def _of_this_version(name: str, known: KnownDataset, plugin: Plugin) -> KnownDataset:
    """Return a data set whose stores are not taken for those that another version made."""

    def source(request: Request) -> Source:
        found = known.source(request)
        if found.name.partition(":")[0] != name:
            raise DataError(f"dataset={name}: its source is called {found.name!r}, not so")
        return replace(found, store=f"{found.store}-{plugin.digest[:12]}")

    return replace(known, source=source)


def _frames(traceback: types.TracebackType | None) -> Iterable[types.TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _check_alone(plugin: Plugin, imported: Iterable[str]) -> None:
    """Raise ValueError where a plugin imported a file that lies beside it."""
    folder = Path(plugin.path).parent
    for name in sorted(imported):
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and file != plugin.path and Path(file).parent == folder:
            raise ValueError(
                f"plugin {plugin.name} imports {Path(file).name}, which lies beside it and would "
                "not travel with it: put both into one file, or install what it imports"
            )
