"""Tables 2 and 3 against the paper's rows."""

from __future__ import annotations

import pytest

from ablations.studies.ncsnv2.sections.architectures import architecture_artefact, layer_rows

#: The paper's Table 3, by the abbreviations R (ResBlock), D (ResBlock down) and F (RefineBlock),
#: filters and dilation.
PAPER = {
    "32-64": "R128 R128 D256 R256 D256/2 R256/2 D256/4 R256/4 F256 F256 F128 F128",
    "96-128": "R128 R128 D256 R256 D256 R256 D512/2 R512/2 D512/4 R512/4 F512 F256 F256 F128 F128",
    "256": "R128 R128 D256 R256 D256 R256 D256 R256 D512/2 R512/2 D512/4 R512/4 "
    "F512 F256 F256 F256 F128 F128",
}
#: The sides of the outputs, coarse layers dilated in place of halving.
SIDES = {"32-64": {32, 16}, "96-128": {96, 48, 24}, "256": {256, 128, 64, 32}}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", PAPER)
def test_layers_are_the_papers(architecture: str, conditional: bool) -> None:
    first, *blocks, last = layer_rows(architecture, conditional=conditional)
    assert (first["layer"], last["layer"]) == ("3x3 Conv2D, 128", "3x3 Conv2D, 3")
    prefix = "Cond" if conditional else ""
    letters = {"ResBlock": "R", "ResBlock down": "D", "RefineBlock": "F"}
    found = []
    for row in blocks:
        title, filters = row["layer"].split(", ")
        assert title.startswith(prefix)
        dilation = f"/{row['dilation']}" if row["dilation"] else ""
        found.append(letters[title.removeprefix(prefix)] + filters + dilation)
    assert " ".join(found) == PAPER[architecture]
    sides = [row["resolution"] for row in (first, *blocks, last)]
    assert set(sides) == SIDES[architecture] and sides[0] == sides[-1] == max(sides)


def test_inputs_are_what_the_layer_before_gave() -> None:
    rows = layer_rows("256", conditional=False)
    assert [row["in_channels"] for row in rows[13:16]] == ["512", "512 + 512", "256 + 256"]
    names = [row["name"] for row in rows if row["name"].startswith("refine")]
    assert names == ["refine1", "refine2", "refine31", "refine3", "refine4", "refine5"]


@pytest.mark.parametrize(("conditional", "name"), [(True, "table2"), (False, "table3")])
def test_a_table_has_every_architecture(conditional: bool, name: str) -> None:
    table = architecture_artefact(conditional=conditional).shown
    assert table.name == name
    assert len(table.raw) == len(table.display) == 14 + 17 + 20
    assert not table.raw["layer"].isna().any()
