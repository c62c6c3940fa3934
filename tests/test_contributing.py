"""CONTRIBUTING.md: its paths, targets and names exist, and its examples run. The forms of issues are valid."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)+|[\w-]+\.(md|py|toml|yaml)")
IDENTIFIER = re.compile(r"_?[A-Za-z]\w*")
FORMS = ("bug.yml", "feature.yml")


def prose(text: str) -> str:
    return FENCED.sub("", text)


def paths(text: str) -> list[str]:
    """Paths in backticks, and arguments of pytest in blocks of shell commands."""
    named = [word for word in IN_BACKTICKS.findall(prose(text)) if PATH.fullmatch(word) and word != "__init__.py"]
    shell = " ".join(code for language, code in FENCED.findall(text) if language == "sh")
    return named + re.findall(r"tests/[\w./]+", shell)


def missing_paths(text: str) -> list[str]:
    return [path for path in paths(text) if not (ROOT / path).exists()]


def missing_targets(text: str) -> list[str]:
    """Targets of make that are named in backticks or at the beginning of a shell command, and do not exist."""
    named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    assert named
    return [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]


def sections(text: str) -> list[str]:
    """The sections of the ways to extend."""
    return re.split(r"^### ", text.partition("## Ways to extend")[2], flags=re.MULTILINE)[1:]


def missing_names(text: str) -> list[str]:
    """Names in backticks that occur in no file that their section names."""
    missing = []
    for section in sections(text):
        files = [ROOT / path for path in paths(section)]
        code = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        names = [word for word in IN_BACKTICKS.findall(prose(section)) if IDENTIFIER.fullmatch(word)]
        missing += [name for name in names if not re.search(rf"\b{name}\b", code)]
    return missing


def examples() -> list[Any]:
    return [
        pytest.param(code, id=section.partition("\n")[0])
        for section in sections(TEXT)
        for language, code in FENCED.findall(section)
        if language == "python"
    ]


def test_paths_targets_and_names_exist() -> None:
    assert len(paths(TEXT)) > 40
    assert missing_paths(TEXT) == missing_targets(TEXT) == missing_names(TEXT) == []


def test_what_is_missing_is_found() -> None:
    assert missing_paths("`tune/absent.py`, `ABSENT.md`\n```sh\npytest tests/absent -q\n```\n") == [
        "tune/absent.py",
        "ABSENT.md",
        "tests/absent",
    ]
    assert missing_targets("`make absent`\nmake check\n") == ["absent"]
    assert missing_names("## Ways to extend\n### A\n`ABSENT` and `main`: `tune/cli/app.py`") == ["ABSENT"]


def test_every_way_to_extend_has_an_example() -> None:
    assert len(sections(TEXT)) == len(examples()) > 7


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("code", examples())
def test_an_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


def test_the_limits_are_those_of_the_architecture() -> None:
    from tests.test_architecture import MOST_FILES, MOST_FUNCTION_LINES, MOST_LINES

    assert (
        f"at most {MOST_LINES} lines, a function at most {MOST_FUNCTION_LINES}, a wing at most {MOST_FILES} files"
        in TEXT
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_an_issue_is_valid(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked and all(part["type"] == "textarea" and part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)


def test_the_hooks_are_the_checks_of_make_and_are_installed_by_it() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    commands = {tuple(hook["entry"].split()[:2]) for hook in repository["hooks"]}
    assert commands == {(".venv/bin/ruff", "format"), (".venv/bin/ruff", "check"), (".venv/bin/mypy",)}
    assert all(hook["language"] == "system" for hook in repository["hooks"])
