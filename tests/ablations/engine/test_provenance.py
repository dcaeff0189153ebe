"""Which change of the code is a result's own."""

import pytest
from resolved import cell

from ablations.engine import provenance
from ablations.engine.provenance import describe_outdated, made_by, modules_digest
from ablations.engine.stages import Stage

FILES = {
    "scorekit/a.py": '"""What a does."""\nfrom scorekit.b import f\n\n\ndef g(x):\n    f(x)\n',
    "scorekit/b.py": "import scorekit.files\n\n\ndef f(x):\n    # Why.\n    return x + 1\n",
    "scorekit/files.py": "X = 1\n",
    "scorekit/other.py": "Y = 1\n",
    "ablations/entry.py": "def h():\n    from scorekit import a\n    from ablations import page\n",
    "ablations/page.py": "TITLE = 1\n",
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        for cached in (modules_digest, provenance._source, provenance._meaning):
            cached.cache_clear()
        return modules_digest(("ablations.entry",))

    yield write
    for cached in (modules_digest, provenance._source, provenance._meaning):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("scorekit/b.py", "x + 1", "x + 2", True),
        ("scorekit/b.py", "# Why.", "# Because.", False),
        ("scorekit/b.py", "    # Why.\n", "\n\n", False),
        ("scorekit/b.py", "x + 1", "x + 1  # one more", False),
        ("scorekit/b.py", "x + 1", 'x + "  # 1"', True),
        ("scorekit/a.py", "What a does.", "What a is.", False),
        ("scorekit/a.py", "f(x)", "f( x )", False),
        ("scorekit/files.py", "X = 1", "X = 2", False),
        ("scorekit/other.py", "Y = 1", "Y = 2", False),
        ("ablations/page.py", "TITLE = 1", "TITLE = 2", False),
        ("ablations/entry.py", "def h():\n", "def h():\n    z = 1\n", True),
    ],
)
def test_what_is_computed_counts_and_what_is_said_or_shown_does_not(
    written, name, old, new, counts
):
    before = written(FILES)
    assert old in FILES[name]
    changed = written(FILES | {name: FILES[name].replace(old, new, 1)})
    assert (changed != before) == counts
    assert written(FILES) == before


def test_an_unknown_module_is_an_error(written):
    written(FILES)
    with pytest.raises(ValueError, match=r"there is no module scorekit\.nothing"):
        modules_digest(("scorekit.nothing",))


def test_each_stage_of_a_cell_depends_on_what_makes_it():
    closures = {
        stage.kind: provenance._closure(stage.code)
        for stage in (
            cell().train_stage(),
            *cell().sample_stages(5000, final=False),
            cell().loss_stage(5000),
            cell().interpolation_stage(5000),
            cell().baseline_stage(),
            cell().reference_stage(),
            cell().quality_stage(5000, denoise=True),
            cell().distance_stage(5000, denoise=True, final=True),
            cell().neighbour_stage(5000, denoise=True, final=True),
            *cell()._feature_stages(5000, denoise=True, final=True),
        )
    }
    network, sampler = "scorekit.models.score_network", "scorekit.sampling.langevin"
    for kind in ("train", "sample", "interpolate", "loss"):
        assert {network, "kernels.philox", "scorekit.runtime.compilation"} <= closures[kind]
        assert not any(name.startswith("scorekit.metrics") for name in closures[kind])
        assert (sampler in closures[kind]) == (kind in ("sample", "interpolate"))
    for kind in closures.keys() - {"train", "sample", "interpolate", "loss"}:
        assert {"scorekit.metrics.frechet", "scorekit.metrics.extractors"} <= closures[kind]
        assert network not in closures[kind]
    trained = {"scorekit.training.trainer", "scorekit.objectives.dsm", "scorekit.training.batches"}
    assert trained <= closures["train"]
    assert trained - {"scorekit.training.trainer"} <= closures["loss"]
    for names in closures.values():
        assert not {"scorekit.files", "ablations.reporting.page", "ablations.pipeline.cell"} & names


def test_a_stage_depends_on_the_code_of_what_it_is_made_from(monkeypatch):
    code = {("a",): "1", ("b",): "2"}
    monkeypatch.setattr(provenance, "modules_digest", code.__getitem__)
    monkeypatch.setattr(provenance, "code_digest", lambda: "whole")
    below = Stage("train", {}, code=("a",))
    above = Stage("sample", {}, (below,), ("b",))
    before = made_by(above)
    assert before == made_by(above, [made_by(below)]) != made_by(above, ["other"])
    code["a",] = "3"
    assert made_by(above) != before
    undeclared = made_by(Stage("own", {}))
    monkeypatch.setattr(provenance, "code_digest", lambda: "edited")
    assert made_by(Stage("own", {})) != undeclared


def test_results_are_counted_by_kind():
    stages = [Stage("sample", {"a": 1}), Stage("sample", {"a": 2}), Stage("train", {})]
    assert describe_outdated(stages) == (
        "results are older than the code that makes them (2 sample, 1 train)"
    )
    assert (
        describe_outdated(stages[:1]) == "a result is older than the code that makes it (1 sample)"
    )
