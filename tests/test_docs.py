"""README and docs: links, files, commands, flags, names and code blocks are what there is."""

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from ablations.command_line import make_plan, parse_arguments
from ablations.engine.plugins import registries, unload_plugins
from ablations.reproduce import find_items

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
#: Those say what is: a changelog also names what was.
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
PACKAGES = "kernels|scorekit|ablations|bench|tests"
#: What a file's name begins with, where it is one of the checkout.
PLACES = (*PACKAGES.split("|"), "docs", "results", ".ci")
#: A block with this title is not run: what it needs is not here.
SKETCH = "sketch"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> Iterator[tuple[str, str]]:
    """Yield the title ("" without one) and the text of each fenced block of a language."""
    pattern = rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```$'
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield match[1] or "", match[2]


def commands(text: str) -> list[list[str]]:
    """Return the words of every ``python -m …`` of shell blocks and of inline code."""
    lines = [line for _, block in blocks(text, "sh") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            if words[:2] == ["python", "-m"] and len(words) > 2:
                found.append(words[2:])
    return found


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the targets of links and pictures that are no file below this folder."""
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = [target for target in targets if not re.match(r"https?:|mailto:", target)]
    return [target for target in local if not (folder / target.split("#")[0]).exists()]


def absent_files(text: str) -> list[str]:
    """Return the paths of the checkout that inline code names and that are not there."""
    codes = re.findall(r"`([^`\s]+)`", re.sub(r"^```", "", text, flags=re.MULTILINE))
    paths = [code for code in codes if code.split("/")[0] in PLACES and "/" in code]
    return [path for path in paths if not re.search(r"[<*]", path) and not (ROOT / path).exists()]


def absent_modules(text: str) -> list[str]:
    """Return the dotted names of our packages, anywhere in a text, that lead to nothing."""
    found = sorted(
        set(re.findall(rf"(?<![\w./-])(?:{PACKAGES})(?:\.[A-Za-z_]\w*)+(?![\w/])", text))
    )
    return [dotted for dotted in found if not leads_somewhere(dotted)]


def leads_somewhere(dotted: str) -> bool:
    if dotted.rsplit(".", 1)[1] in ("py", "md", "toml", "json"):
        return True  # a file's name, which is no module's
    module, rest = dotted, []
    while not has_module(module):
        module, _, attribute = module.rpartition(".")
        if not module:
            return False
        rest.insert(0, attribute)
    value = importlib.import_module(module) if rest else None
    for attribute in rest:
        if not hasattr(value, attribute):
            return False
        value = getattr(value, attribute)
    return True


def has_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


def wrong_command(words: list[str]) -> str:
    """Return what is wrong with a ``python -m`` command, "" where nothing is."""
    module, *arguments = words
    if not has_module(module):
        return f"no module {module}"
    arguments = [word.replace("…", "1") for word in arguments]
    if module == "ablations.launch":
        return "" if parses(arguments) else f"launch does not take {arguments}"
    if module == "ablations.reproduce":
        # Names come first, and what is not its own goes to the launcher.
        names = [word for word in arguments if not word.startswith("-")]
        try:
            find_items(names or ["all"])
        except ValueError as error:
            return str(error)
        flags = [word for word in arguments if word.startswith("--")]
        return "" if parses([f for f in flags if f not in ("--list", "--no-run")]) else str(flags)
    if module.split(".")[0] not in PACKAGES.split("|"):
        return ""
    folder = importlib.util.find_spec(module).submodule_search_locations
    path = Path(folder[0]) if folder else Path(importlib.util.find_spec(module).origin or "")
    sources = path.glob("*.py") if folder else [path]
    text = "".join(source.read_text() for source in sources)
    flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
    absent = [flag for flag in flags if flag not in text and flag.removeprefix("--") not in text]
    return f"{module} has no {absent}" if absent else ""


def parses(arguments: list[str]) -> bool:
    try:
        parse_arguments(arguments)
    except SystemExit:
        return False
    return True


def unknown_flags(text: str) -> list[str]:
    """Return the ``--flags`` in inline code that no command of ours has."""
    sources = [p for package in ("ablations", "scorekit", "bench", "kernels", "tests/mutants")
               for p in (ROOT / package).rglob("*.py")]  # fmt: skip
    known = set(re.findall(r'"--([a-z][a-z-]*)"', "".join(p.read_text() for p in sources)))
    codes = [c for c in re.findall(r"`([^`\n]+)`", text) if c.startswith("--")]
    return sorted({c for c in codes if re.match(r"--([a-z-]+)", c)[1] not in known})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    assert broken_links(page.read_text(), page.parent) == []


@pytest.mark.parametrize("page", PRESENT, ids=name)
def test_files_modules_commands_and_flags_that_are_named_exist(page):
    text = page.read_text()
    assert absent_files(text) == []
    assert absent_modules(text) == []
    assert [wrong for words in commands(text) if (wrong := wrong_command(words))] == []
    assert unknown_flags(text) == []


def test_what_is_wrong_in_a_page_is_seen():
    assert broken_links("[a](no.md) [b](https://x.org) ![c](README.md#two)", ROOT) == ["no.md"]
    assert absent_files("`tests/test_docs.py` `tests/gone.py` `a/b`") == ["tests/gone.py"]
    text = "`scorekit.models.ScoreNetwork`, scorekit.networks and `ablations.engine.job.Jobs`"
    assert absent_modules(text) == ["ablations.engine.job.Jobs", "scorekit.networks"]
    shell = "```sh\ncd x && python -m ablations.launch --rows 3  # no\n```\n`python -m bench.x`"
    found = commands(shell)
    assert found == [["ablations.launch", "--rows", "3"], ["bench.x"]]
    assert all(map(wrong_command, found))
    assert wrong_command(["ablations.reproduce", "fig99"])
    assert wrong_command(["ablations.clean", "OUT", "--ja"])
    assert not wrong_command(["ablations.clean", "OUT", "--yes"])
    assert unknown_flags("`--grid paper`, `--parts toy`") == ["--parts toy"]


def test_the_readme_is_one_page():
    assert len(README.read_bytes()) <= 9 * 1024
    assert "pip install -e . && python -m ablations.launch --grid paper\n" in README.read_text()


def test_few_blocks_are_sketches():
    titles = [
        title
        for page in PRESENT
        for language in ("python", "sh")
        for title, _ in blocks(page.read_text(), language)
    ]
    assert titles.count(SKETCH) <= 2 and len(titles) > 20


def with_python() -> list[Path]:
    return [
        page
        for page in PRESENT
        if any(not title for title, _ in blocks(page.read_text(), "python"))
    ]


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks that a page gives the name of a file."""
    for language in ("toml", "python"):
        for title, block in blocks(page.read_text(), language):
            if title and "/" not in title and title != SKETCH:
                (folder / title).write_text(block)


@pytest.mark.parametrize("page", with_python(), ids=name)
def test_python_blocks_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCOREKIT_IMPL", "torch")  # as on a machine without a GPU
    monkeypatch.syspath_prepend(tmp_path)
    write_files(page, tmp_path)
    found = [block for title, block in blocks(page.read_text(), "python") if not title]
    namespace: dict[str, object] = {"__name__": "page"}
    before, modules = {kind: dict(known) for kind, known in registries().items()}, set(sys.modules)
    try:
        for number, block in enumerate(found):
            exec(compile(block, f"{name(page)}, block {number}", "exec"), namespace)
    finally:
        for kind, known in registries().items():
            known.clear()
            known.update(before[kind])
        for module in set(sys.modules) - modules:
            if (tmp_path / f"{module}.py").exists():
                del sys.modules[module]


def test_every_python_block_parses():
    for page in PRESENT:
        for _, block in blocks(page.read_text(), "python"):
            ast.parse(block, name(page))


def test_toml_blocks_are_toml():
    found = [block for page in PRESENT for _, block in blocks(page.read_text(), "toml")]
    assert len(found) > 2
    assert all(map(tomllib.loads, found))


@pytest.mark.slow
def test_launches_of_the_pages_can_be_planned(tmp_path, monkeypatch):
    """Every one whose data are here, in an empty folder."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        Image.new("RGB", (40, 40), (number * 10, 0, 0)).save(f"photos/{number}.png")
    for page in PRESENT:
        write_files(page, tmp_path)
    asked = {}
    for page in PRESENT:
        for words in commands(page.read_text()):
            absent = "points" in words or any(word.startswith("cifar10") for word in words)
            if words[0] == "ablations.launch" and len(words) > 1 and not absent:
                asked[" ".join(words)] = [word for word in words[1:] if word != "--status"]
    assert len(asked) > 10
    for line, words in asked.items():
        plan = make_plan(parse_arguments([*words, "--dry-run", "--device", "cpu"]))
        assert plan.jobs, line
        unload_plugins()
