"""The documents: each command parses, each name, link and file exists, each block is valid. See tests/documents.py."""

import argparse
import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nuanced_core.config.settings import RunConfig
from tests.documents import (
    BEFORE,
    DOCUMENTS,
    INSTEAD,
    NOT_RUN,
    RUN,
    Command,
    blocks,
    commands,
    inline,
    to_run,
)
from tests.tune.cli.test_app import COMMANDS
from tests.tune.cluster.shell_commands import calls
from tune.cli.app import main
from tune.cli.common.command import GlobalOptionsCommand
from tune.config.sweep_config import load_run, load_sweep_config, parse_sweep
from tune.config.sweep_settings import SweepSettings

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOG = "docs/LOG.md"  # what was run once; only its modules must still exist
ALL = (*DOCUMENTS, LOG, "CHANGELOG.md", "models/default/README.md")
# What a word in capitals stands for where only a number or a command will do.
PLACEHOLDERS = {"COMMAND": "sweep", "STEPS": "3"}
# Programs that the documents name, beside those whose commands are parsed here.
OTHER_PROGRAMS = {
    "git",
    "cd",
    ".",
    "curl",
    "ffplay",
    "pre-commit",
    "aws",
    "chmod",
    "docker",
    "kubectl",
    "sbatch",
    "tail",
}
OTHER_PROGRAMS |= {"export", "ray", "tensorboard", "wandb"}
PARSED = {"nuanced", "make", "python", "pytest", "pip"}
SHELL = [command for document in DOCUMENTS for command in commands(document) if command.language != "python"]


def of_program(name: str, found: list[Command] = SHELL) -> list[Any]:
    """Each call of a program in the commands, with the document; a name alone is a mention."""
    cases = {
        (command.document, shlex.join(call)): pytest.param(call, command, id=f"{command.document}: {shlex.join(call)}")
        for command in found
        for call in calls(command.text, name)
        if call
    }
    return list(cases.values())


def parse_nuanced(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Parse a command line of ``nuanced`` without running it.

    Raises:
        ValueError: it is refused, with the message.
    """
    parsed: dict[str, Any] = {}

    def invoke(command: Any, context: Any) -> None:
        parsed.update(context.params, command=context.info_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GlobalOptionsCommand, "invoke", invoke)
        code = main(arguments)
    error = capsys.readouterr().err.strip()
    if code:
        raise ValueError(error)
    return parsed


def check_nuanced(call: list[str], command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    call = [PLACEHOLDERS.get(word, word) for word in call]
    if call == ["--install-completion"]:
        return  # Typer's own
    try:
        parsed = parse_nuanced(call, capsys)
    except ValueError as error:
        # In a sentence a command may be named without its arguments.
        if command.language == "" and "missing " in str(error):
            return
        raise
    config = parsed.get("config")
    if config is not None and str(config) != "CONFIG":
        assert (ROOT / config).is_file(), config
        overrides = [text.replace("=DIR", f"={ROOT}") for text in parsed.get("overrides") or ()]
        (load_run if parsed["command"] == "train" else load_sweep_config)(ROOT / config, overrides)


class _ParsedError(Exception):
    pass


def parse_module(module: str, arguments: list[str]) -> None:
    """Parse a command line of ``python -m module`` by its own argparse, without running it.

    Raises:
        ValueError: it is refused, or parses nothing.
        ImportError: there is no such module.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise _ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            importlib.import_module(module).main()
        except _ParsedError:
            return
        except SystemExit as error:
            raise ValueError(f"{module}: {arguments}") from error
    raise ValueError(f"{module}: parses no arguments")


def missing_tests(words: list[str]) -> list[str]:
    """The paths of a command line of pytest that do not exist."""
    return [word for word in words if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()]


@pytest.mark.parametrize(("call", "command"), of_program("nuanced"))
def test_nuanced_accepts_a_command(call: list[str], command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    check_nuanced(call, command, capsys)


@pytest.mark.parametrize(("call", "command"), of_program("make"))
def test_make_has_a_target(call: list[str], command: Command) -> None:
    done = subprocess.run(["make", "--dry-run", *call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("call", "command"), of_program("python"))
def test_python_runs_a_module_that_accepts_the_arguments(call: list[str], command: Command) -> None:
    if call[0] == "-c":
        compile(call[1], command.document, "exec")
    elif call[1:2] in (["pip"], ["pytest"]):
        assert missing_tests(call) == []
    elif call != ["-m"]:
        parse_module(call[1], call[2:])


def test_what_is_wrong_with_a_command_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    block = (
        "```sh\nnuanced convert a.wav  # both\nnuanced swep \\\n  a\n```\nIn a sentence `make` and `nuanced\nvoice`.\n"
    )
    found = commands("README.md", block)
    assert [command.text for command in found] == ["nuanced convert a.wav", "nuanced swep a", "nuanced voice"]
    for command, message in zip(found, ["missing argument 'OUT'", "no such command 'swep'", None], strict=True):
        (call,) = calls(command.text, "nuanced")
        if message is None:
            check_nuanced(call, command, capsys)
            continue
        with pytest.raises(ValueError, match=message):
            check_nuanced(call, command, capsys)
    with pytest.raises(Exception, match="epoch"):
        check_nuanced(["train", "configs/default.yaml", "--set", "train.epoch=3"], found[0], capsys)
    with pytest.raises(ValueError, match=r"tests\.benchmarks\.step"):
        parse_module("tests.benchmarks.step", ["--round", "many"])
    assert missing_tests(["-q", "tests/absent"]) == ["tests/absent"]


def test_every_program_of_the_blocks_is_known() -> None:
    named = set()
    for command in SHELL:
        if command.language:
            for part in re.split(r"&&|\||;", re.sub(r"'[^']*'|\"[^\"]*\"", "''", command.text)):
                words = [word for word in part.split() if "=" not in word.partition("/")[0]]
                named |= {Path(words[0]).name or "." for word in words[:1]}
    assert named <= PARSED | OTHER_PROGRAMS
    assert named >= {"nuanced", "make", "python", "git", "curl"}


def test_the_blocks_of_documents_say_their_language() -> None:
    for document in DOCUMENTS:
        for language, code in blocks(document):
            assert language in ("sh", "console", "text", "python", "yaml"), f"{document}: {code}"
            if language == "text":
                assert not re.search(r"^\s*(nuanced|make|python|pip) ", code, re.MULTILINE)


def test_options_that_sentences_name_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    named = {
        (document, option)
        for document in RUN
        for code in inline(document)
        for option in re.findall(r"^(--[a-z][\w-]*)", code)
    }
    assert len(named) > 10
    for command in sorted(COMMANDS | {"report"}):
        assert main([command, "--help"]) == 0
    known = set(re.findall(r"(--[a-z][\w-]*)", capsys.readouterr().out))
    assert [(document, option) for document, option in named if option not in known] == []


def test_settings_that_the_documents_name_exist() -> None:
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()} | {"sweep": SweepSettings}
    named = {
        (document, match[1], match[2])
        for document in DOCUMENTS
        for code in inline(document)
        if (match := re.fullmatch(rf"({'|'.join(sections)})\.([a-z_]+)([=:].*)?", code)) and match[2] != "yaml"
    }
    assert len(named) > 20
    wrong = [(place, f"{a}.{b}") for place, a, b in named if b not in getattr(sections[a], "model_fields", ())]
    assert wrong == []


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: str, text: str) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("document", ALL)
def test_links_lead_somewhere(document: str) -> None:
    assert list(broken_links(document, (ROOT / document).read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](README.md) [b](absent.md) [c](#absent) [d](docs/RESULTS.md#conversion) [e](docs/RESULTS.md#absent)"
    assert list(broken_links("README.md", text)) == ["absent.md", "#absent", "docs/RESULTS.md#absent"]


@pytest.mark.parametrize("document", ALL)
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    kinds = "configs" if document in (LOG, "CHANGELOG.md") else "configs|docs|tests|nuanced_core|tune"
    named = set(re.findall(rf"(?<![\w/.-])((?:{kinds})/[\w./-]+\.(?:py|yaml|md|sh|ipynb|png))\b", text))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_modules_that_the_log_names_exist() -> None:
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in (LOG, "CHANGELOG.md"))
    named = set(re.findall(r"python -m (tests\.benchmarks\.\w+)", text))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_yaml_and_json_are_valid() -> None:
    found = 0
    for document in DOCUMENTS:
        for language, code in blocks(document):
            if language == "yaml":
                parse_sweep(yaml.safe_load(code), document)
                found += 1
        for command in commands(document):
            for body in re.findall(r"-d '(.*?)'", command.text):
                assert "input" in json.loads(body)
                found += 1
    assert found >= 2


@pytest.mark.parametrize("document", ALL)
def test_the_imports_of_python_exist(document: str) -> None:
    for language, code in blocks(document):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_the_latest_release_of_the_changelog() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d", titles[1])


def test_extras_that_are_named_exist() -> None:
    named = set()
    for document in (*DOCUMENTS, "CHANGELOG.md"):
        text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
        for names in re.findall(r"extras? ((?:'\w+'|`\w+`)(?:(?:, | and )`\w+`)*)", text):
            named |= set(re.findall(r"\w+", names)) - {"and"}
    assert {"eval", "serve", "mlflow", "wandb", "dashboard"} == named
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_script_has_no_rule_for_a_command_that_is_gone() -> None:
    texts = {command.text for command in to_run()}
    assert [rule for rules in (INSTEAD, NOT_RUN, BEFORE) for rule in rules if rule not in texts] == []
    assert not INSTEAD.keys() & NOT_RUN.keys()
    assert RUN == ("README.md", "CONTRIBUTING.md") and {command.document for command in to_run()} == set(RUN)


@pytest.mark.parametrize(
    ("call", "command"),
    of_program("nuanced", [Command(line, "INSTEAD", "sh") for line in [*INSTEAD.values(), *BEFORE.values()]]),
)
def test_nuanced_accepts_what_the_script_runs(
    call: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    if "../quickstart.yaml" in call:
        call = ["configs/quickstart.yaml" if word == "../quickstart.yaml" else word for word in call]
    check_nuanced(call, command, capsys)
