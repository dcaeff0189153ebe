import pytest
from places import ROOT

from tests.mutants import runner
from tests.mutants.runner import Mutant, all_mutants


@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_every_error_can_still_be_put_into_the_code(mutant):
    assert (ROOT / mutant.path).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((ROOT / test.split("::")[0]).is_file() for test in mutant.tests)


def checkout(tmp_path, monkeypatch):
    """Let the runner find a project of one function and its test."""
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "half.py").write_text("def half(x):\n    return x / 2\n")
    text = "from half import half\n\n\ndef test_half():\n    assert half(4) == 2\n"
    (project / "tests" / "test_half.py").write_text(text)
    files = ("half.py", "tests/test_half.py")

    def copy(folder):
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((project / name).read_bytes())
        return folder

    monkeypatch.setattr(runner, "copy_checkout", copy)
    return project


def errors(*changes, why=""):
    return lambda: [Mutant("half.py", *c, ("tests/test_half.py",), why) for c in changes]


@pytest.mark.slow
def test_what_the_tests_notice_is_told_from_what_survives(tmp_path, monkeypatch, capsys):
    project = checkout(tmp_path, monkeypatch)
    monkeypatch.setattr(runner, "all_mutants", errors(("x / 2", "x / 3"), ("x / 2", "x - 2")))
    assert runner.main([]) == 1
    said = capsys.readouterr().out
    assert "noticed" in said.splitlines()[0] and "SURVIVED" in said.splitlines()[1]
    assert "half.py: 1 of 2 noticed (50%)\ntotal: 1 of 2 noticed (50%)" in said
    assert (project / "half.py").read_text().endswith("return x / 2\n")
    assert runner.main(["/ 3"]) == 0


@pytest.mark.slow
def test_a_survivor_with_a_reason_is_no_fault_and_failing_tests_are(tmp_path, monkeypatch, capsys):
    project = checkout(tmp_path, monkeypatch)
    monkeypatch.setattr(runner, "all_mutants", errors(("x / 2", "x - 2"), why="only 4 is halved"))
    assert runner.main([]) == 0
    assert "only 4 is halved" in capsys.readouterr().out
    (project / "half.py").write_text("def half(x):\n    return x / 2 + 1\n")
    assert runner.main([]) == 1
    assert "without an error, tests/test_half.py: failed" in capsys.readouterr().err


def test_a_text_that_is_not_there_once_is_named(tmp_path):
    (tmp_path / "half.py").write_text("return x / 2\n")
    with pytest.raises(ValueError, match=r"half\.py: the old text is there 0 times"):
        Mutant("half.py", "x / 5", "x / 3", ()).put_into(tmp_path)
