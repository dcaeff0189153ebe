"""Budgets, and ``key=value`` overrides of any class of settings."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

_S = TypeVar("_S")


def setting(
    default: Any, words: str, unit: str = "", *, names: Callable[[], Iterable[str]] | None = None
) -> Any:
    """Return a field of a class of settings, with what it is in a line, and what it counts.

    ``names`` are those that it takes, where more of them can be registered.
    """
    return field(default=default, metadata={"words": words, "unit": unit, "names": names})


def check_names(settings: Any) -> None:
    """Raise ValueError, which lists those known, for a setting that names what nobody knows."""
    for each in dataclasses.fields(settings):
        value, names = getattr(settings, each.name), each.metadata.get("names")
        if names is not None and value is not None and value not in (known := list(names())):
            raise ValueError(
                f"{each.name} = {value!r} is unknown{nearest(value, known)}; "
                f"known: {', '.join(known)}"
            )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A named profile of settings, printed with every run and on every table."""

    name: str
    description: str
    settings: Any  # of the class whose fields --set takes
    datasets: tuple[str, ...]
    # What is set otherwise from a side of images on, so that the budget's time stays what it is.
    larger: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def at(self, image_size: int) -> Mapping[str, Any]:
        """Return what the budget sets otherwise for images of this side."""
        sides = [side for side in self.larger if side <= image_size]
        return self.larger[max(sides)] if sides else {}

    def settings_for(self, image_size: int, overrides: Mapping[str, Any]) -> Any:
        """Return the settings for images of a side, of which ``overrides`` replace some."""
        return apply_overrides(self.settings, {**self.at(image_size), **overrides})


def parse_overrides(pairs: list[str], kind: type) -> dict[str, Any]:
    """Return ``key=value`` texts as typed fields of the settings class ``kind``.

    ValueError names the key, the value and the type.
    """
    overrides = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} is not of the form key=value")
        overrides[key.strip()] = coerce(key.strip(), text.strip(), kind)
    return overrides


def coerce(key: str, value: Any, kind: type) -> Any:
    """Return ``value`` (a text, or a TOML value) as the type of the setting ``key`` of ``kind``."""
    hints = typing.get_type_hints(kind)
    if key not in hints:
        known = ", ".join(sorted(hints))
        raise ValueError(f"setting {key!r} is unknown{nearest(key, hints)}; known: {known}")
    kinds = _alternatives(hints[key])
    for alternative in kinds:
        converted = _convert(alternative, value)
        if converted is not _NOT_CONVERTED:
            return converted
    wanted = " or ".join(map(_describe, kinds))
    raise ValueError(f"{key} = {value!r} is not {wanted}")


def nearest(text: str, known: Iterable[str]) -> str:
    """Return ", did you mean ...?" for a text that is nearly one of those known, else nothing."""
    found = difflib.get_close_matches(text, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def describe_settings(kind: type, budgets: Mapping[str, Budget]) -> list[str]:
    """Return a line for each setting: name, type and unit, value under each budget, what it is.

    Without a value it is derived: from the paper, the data or the variant.
    """
    hints = typing.get_type_hints(kind)

    def value(budget: Budget, key: str) -> str:
        found = getattr(budget.settings, key)
        return "derived" if found is None else str(found)

    rows = [["setting", "type", *budgets, "what it is"]]
    for each in dataclasses.fields(kind):
        kinds = [one for one in _alternatives(hints[each.name]) if one is not type(None)]
        what, unit = " or ".join(map(_describe, kinds)), each.metadata.get("unit")
        if (names := each.metadata.get("names")) is not None:
            what = "one of " + ", ".join(map(repr, names()))
        rows.append(
            [
                each.name,
                f"{what} of {unit}" if unit else what,
                *(value(budget, each.name) for budget in budgets.values()),
                each.metadata.get("words", ""),
            ]
        )
    widths = [min(32, max(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


_NOT_CONVERTED = object()


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for arg in typing.get_args(hint) for kind in _alternatives(arg)]
    return [hint]


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "'none'",
    }[kind]


def _convert(kind: Any, value: Any) -> Any:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if typing.get_origin(kind) is Literal:
        return text if text in typing.get_args(kind) else _NOT_CONVERTED
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), _NOT_CONVERTED)
    if kind is type(None):
        return None if text.lower() == "none" else _NOT_CONVERTED
    if kind is str:
        return text if text.lower() != "none" else _NOT_CONVERTED
    try:
        return kind(text.replace("_", "")) if not isinstance(value, bool) else _NOT_CONVERTED
    except ValueError:
        return _NOT_CONVERTED


def apply_overrides(settings: _S, overrides: dict[str, Any]) -> _S:
    """Return the settings with some replaced, checked together."""
    return dataclasses.replace(settings, **overrides)  # type: ignore[type-var]
