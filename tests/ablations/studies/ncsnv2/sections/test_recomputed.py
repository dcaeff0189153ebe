"""Table 4 recomputed, against numbers worked out apart from it."""

import pytest

from ablations.studies.ncsnv2.sections.recomputed import recomputed_table
from scorekit.techniques.table_4 import TABLE_4


def test_every_row_is_there_as_printed_and_by_the_techniques():
    table = recomputed_table()
    raw = table.raw
    printed = raw[raw["kind"] == "paper"]
    assert list(printed["epsilon"]) == [row.ladder.step_size for row in TABLE_4]
    assert list(printed["note"]) == [row.note for row in TABLE_4]
    assert printed.iloc[-1]["note"].startswith("printed as 0.9e-7, a misprint")
    v2 = printed[printed["variant"] == "NCSNv2"]
    assert list(v2["C"]) == pytest.approx([0.5668] * len(v2), abs=2e-3)
    for _, rows in raw[raw["variant"] == "NCSNv2"].groupby("dataset", sort=False):
        paper, technique_4, steady = rows.to_dict("records")
        assert technique_4["C"] == steady["C"] == pytest.approx(0.5, abs=2e-3)
        levels, steps = technique_4["L"], technique_4["T"]
        assert levels * steps <= paper["evaluations"] < levels * (steps + 1)
        assert (technique_4["step_rule"], steady["step_rule"]) == ("Technique 4", "steady state")
        assert steady["steady"] < technique_4["steady"]
        assert technique_4["eq_4"] < steady["eq_4"]


def test_the_variances_of_cifar10_are_those_of_the_recursion_by_hand():
    raw = recomputed_table().raw
    (row,) = raw[(raw["dataset"] == "cifar10 32²") & (raw["source"] != "computed")].to_dict(
        "records"
    )[1:]
    gamma = (50 / 0.01) ** (1 / 231)
    rate, v = 6.2e-6 / 0.01**2, gamma**2
    for _ in range(5):  # Eq. (4): a step of Langevin dynamics on a Gaussian, T times
        v = (1 - rate) ** 2 * v + 2 * rate
    assert row["eq_4"] == pytest.approx(v, rel=1e-9)
    v = 1.0
    for level in range(232):
        v *= gamma**2 if level else 1
        for _ in range(5):
            v = (1 - rate) ** 2 * v + 2 * rate
    assert row["at_end"] == pytest.approx(v, rel=1e-9)
    assert row["steady"] == pytest.approx(v, rel=1e-6)
