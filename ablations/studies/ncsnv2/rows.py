"""Rows of a grid: a variant, and the settings that the row sets apart from others."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablations.engine.settings import Budget, coerce
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import Variant, parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import (
    BUDGETS,
    SHARED_SETTINGS,
    TRIED_SETTINGS,
    Settings,
)
from ablations.studies.ncsnv2.without_effect import without_effect

#: What a row may set apart: any setting of results but those of the data, and the budget.
ROW_SETTINGS = (
    "budget",
    *(f.name for f in dataclasses.fields(Settings) if f.name not in SHARED_SETTINGS),
)
_BY_VALUE = ("objective", "sampler")  # settings whose values say what they are of

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """A variant of a grid, and what of ROW_SETTINGS it sets apart from the grid's others.

    ``common`` are settings put on many rows at once, which those without use for them leave out;
    one of ``overrides`` without effect is refused. ``label`` replaces the name that tells both.
    """

    variant: Variant
    overrides: Pairs = ()
    common: Pairs = ()
    label: str = ""

    def resolve(self, budget: Budget, overrides: Mapping[str, Any], data: DataFacts) -> Cell:
        """Return the row's cell with seed 0, under a budget of which ``overrides`` replace some.

        Raises ValueError for a value out of range, or one of the row's own without effect.
        """
        own = {**dict(self.common), **dict(self.overrides)}
        cell = self._cell(own, budget, overrides, data)
        found = without_effect(cell, {k: v for k, v in own.items() if k != "budget"})
        for key, reason in found.items():
            if key in dict(self.overrides):
                raise ValueError(
                    f"the row {self.label or self.variant.name} with {key} = {own[key]}: it has no "
                    f"effect there, {reason}"
                )
        if found:
            own = {key: value for key, value in own.items() if key not in found}
            cell = self._cell(own, budget, overrides, data)
        return cell

    def _cell(
        self, own: dict[str, Any], budget: Budget, overrides: Mapping[str, Any], data: DataFacts
    ) -> Cell:
        under = BUDGETS[own["budget"]] if "budget" in own else budget
        given = {key: value for key, value in own.items() if key != "budget"}
        settings = under.settings_for(data.image_size, {**overrides, **given})
        cell = resolve(settings, self.variant, data, seed=0)
        title = ""
        if self.label:
            added = dict(self.common).items() & own.items()
            title = ", ".join([self.label, *_texts(cell, dict(sorted(added)))])
        return dataclasses.replace(
            cell,
            row=", ".join(_texts(cell, own)),
            title=title,
            own=tuple(sorted(own.items())),
        )

    def beside(self, apart: Mapping[str, Any]) -> "Row":
        """Return the row with settings put on it that it does not give itself."""
        own = dict(self.overrides)
        common = {**dict(self.common), **{k: v for k, v in apart.items() if k not in own}}
        return dataclasses.replace(self, common=tuple(sorted(common.items())))


def make_row(variant: Variant, *, label: str = "", **overrides: Any) -> Row:
    """Return a row by its settings."""
    return Row(variant, tuple(sorted(overrides.items())), label=label)


def read_row(table: Mapping[str, Any]) -> Row:
    """Return the row that a table of a TOML grid describes; ValueError for a bad one."""
    known = ("variant", "label", *ROW_SETTINGS)
    for key in sorted(table):
        if key in SHARED_SETTINGS:
            raise ValueError(
                f"[[rows]] {key} = {table[key]!r}: all rows of a data set have the same images; "
                "set it for the grid, under [set]"
            )
        if key not in known:
            raise ValueError(f"[[rows]] key {key!r} is unknown; known: {', '.join(known)}")
    if not isinstance(table.get("variant"), str):
        raise ValueError("[[rows]] needs variant, the name of one")
    label = table.get("label", "")
    if not isinstance(label, str) or not label.isprintable() or len(label) > 60:
        raise ValueError(f"[[rows]] label = {label!r} must be a text of one line, 60 at most")
    own = {key: coerce_row(key, v) for key, v in table.items() if key not in ("variant", "label")}
    return make_row(parse_variant(table["variant"]), label=label, **own)


def coerce_row(key: str, value: Any) -> Any:
    """Return a value as the type of a setting that rows may have; ValueError for another."""
    if key == "budget":
        if value not in BUDGETS:
            raise ValueError(f"budget = {value!r}; known: {', '.join(BUDGETS)}")
        return value
    return coerce(key, value, Settings)


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return ``key=a,b,c`` texts as values by key; ValueError, in one line, for a bad one."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise ValueError(f"--vary {text!r} is not of the form key=value,value")
        if key in found:
            raise ValueError(f"--vary {key}: given twice; separate its values by commas")
        found[key] = read_values("--vary", key, values.split(","))
    return found


def read_values(where: str, key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the values of a setting that rows are made of; ``where`` begins a complaint."""
    if key not in ROW_SETTINGS:
        if key in SHARED_SETTINGS:
            raise ValueError(f"{where} {key}: all rows of a data set have the same images")
        raise ValueError(f"{where} {key}: unknown; known: {', '.join(ROW_SETTINGS)}")
    return tuple(
        dict.fromkeys(
            coerce_row(key, value.strip() if isinstance(value, str) else value) for value in values
        )
    )


def varied(rows: Iterable[Row], values: Mapping[str, Sequence[Any]]) -> tuple[Row, ...]:
    """Return every row with every combination of the values, each once."""
    combinations = [dict(zip(values, c, strict=True)) for c in itertools.product(*values.values())]
    return tuple(dict.fromkeys(row.beside(one) for row in rows for one in combinations))


def rows_of(cells: Iterable[Cell]) -> tuple[Row, ...]:
    """Return the rows that made cells."""
    return tuple(dict.fromkeys(Row(c.variant, c.own, label=c.title) for c in cells))


def settings_apart(cells: Iterable[Cell]) -> list[str]:
    """Return the settings that rows set apart from one another, in the order of ROW_SETTINGS."""
    given = {key for cell in cells for key, _ in cell.own}
    return [key for key in ROW_SETTINGS if key in given]


def _texts(cell: Cell, own: Mapping[str, Any]) -> list[str]:
    """Return the parts of a row's name that tell its own settings."""
    parts = [str(own[key]) for key in _BY_VALUE if key in own]
    if {"sampling_levels", "n_steps_each"} & set(own):
        parts.append(f"{cell.sampling_levels}×{cell.n_steps_each}")
    if "step_size" in own:
        parts.append(f"ε={cell.step_size:.3g}")
    told = {*_BY_VALUE, *TRIED_SETTINGS}
    return parts + [
        f"{key}={short_value(own[key])}" for key in ROW_SETTINGS if key in {*own} - told
    ]


def short_value(value: Any) -> str:
    """Return a setting's value as rows are named by it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "derived" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
