"""The wings and their dependencies: every module belongs to a wing, and a wing imports only wings below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = 9  # in a wing, __init__.py included
MOST_LINES = 400  # of a file
MOST_FUNCTION_LINES = 60
# The modules that lie directly in a package, next to its __init__ with the public names.
ROOT_MODULES: dict[str, set[str]] = {
    "nuanced_core": {"errors", "audio", "sound_files", "hashing", "machine_limits", "paths", "progress"},
    "tune": set(),
}

# Each wing, and the wings of the same package that it may import beside its package's root modules.
# tune may import every wing of nuanced_core; nuanced_core never imports tune.
WINGS: dict[str, tuple[str, ...]] = {
    "nuanced_core": (),
    "nuanced_core.config": (),
    "nuanced_core.weights": (),
    "nuanced_core.text": (),
    "nuanced_core.kokoro": ("config",),
    "nuanced_core.speakers": (),
    "nuanced_core.hearing": ("config", "speakers"),
    "nuanced_core.encoder": ("config", "kokoro", "hearing", "speakers"),
    "nuanced_core.data": ("config", "weights", "text", "kokoro", "hearing", "speakers"),
    "nuanced_core.people": ("config", "text", "hearing", "speakers", "data"),
    "nuanced_core.judges": ("weights", "speakers"),
    "nuanced_core.losses": ("config", "kokoro", "hearing", "speakers", "encoder", "data"),
    "nuanced_core.exhibits": ("config", "kokoro", "encoder", "data"),
    "nuanced_core.export": (*("config", "weights", "kokoro", "hearing", "speakers", "encoder", "data", "exhibits"),),
    "nuanced_core.refinement": ("config", "kokoro", "hearing", "speakers", "encoder", "data", "losses"),
    "nuanced_core.transfer": ("config", "kokoro", "hearing", "speakers"),
    "nuanced_core.speech": (
        *("config", "weights", "text", "kokoro", "speakers", "hearing", "encoder", "data", "people", "losses"),
        *("refinement", "transfer"),
    ),
    "nuanced_core.training": (
        *("config", "weights", "kokoro", "hearing", "speakers", "encoder", "data", "people", "losses", "exhibits"),
    ),
    "nuanced_core.evaluation": (
        *(
            "config",
            "weights",
            "text",
            "kokoro",
            "hearing",
            "speakers",
            "encoder",
            "data",
            "people",
            "judges",
            "losses",
        ),
        *("refinement", "training"),
    ),
    "nuanced_core.dialogue": ("data", "hearing", "people", "speech"),
    "nuanced_core.serving": ("kokoro", "speech"),
    "tune": (),
    "tune.config": (),
    "tune.search": ("config",),
    "tune.cluster": ("config",),
    "tune.loggers.clients": ("config",),
    "tune.loggers": ("config", "search", "cluster", "loggers.clients"),
    "tune.trial": ("config", "search", "cluster", "loggers"),
    "tune.show": ("config", "search", "cluster", "loggers", "trial"),
    "tune.sweep": ("config", "search", "cluster", "loggers", "trial", "show"),
    "tune.analysis": ("config", "search", "cluster", "trial", "show"),
    "tune.cli.common": ("config", "cluster"),
    "tune.cli.training": ("config", "sweep", "cli.common"),
    "tune.cli.inspection": ("config", "show", "cli.common"),
    "tune.cli.results": ("trial", "show", "analysis", "cli.common"),
    "tune.cli.storage": ("cli.common",),
    "tune.cli.use": ("config", "cli.common"),
    "tune.cli": ("cli.common", "cli.training", "cli.inspection", "cli.results", "cli.storage", "cli.use"),
}
# What nuanced_core never loads, so that it can be used without the search.
SEARCH_PACKAGES = {"tune", "ray", "optuna", "tensorboard"}


def _sources(root: Path, package: str) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def _module(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _wing_of(module: str) -> str | None:
    """The wing of a module: itself if it is one, else its folder; None if that is no wing, or lacks the module."""
    folder, _, name = module.rpartition(".")
    if module in WINGS:
        return module
    return folder if folder in WINGS and name in ROOT_MODULES.get(folder, {name}) else None


def _imports(file: Path, root: Path) -> Iterator[tuple[str, str | None]]:
    """What a file imports, anywhere in it: (module, name) of ``from module import name``, (module, None) else."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def _target(module: str, name: str | None, root: Path) -> str:
    """The module that an import reaches: ``from nuanced_core.config import settings`` is about the latter."""
    inner = root.joinpath(*module.split("."), name or "")
    return f"{module}.{name}" if name and (inner.with_suffix(".py").is_file() or inner.is_dir()) else module


def violations(root: Path) -> list[str]:
    """What is wrong with the imports and the places of all modules below ``root``."""
    found = []
    for file in [*_sources(root, "nuanced_core"), *_sources(root, "tune")]:
        module = _module(root, file)
        wing = _wing_of(module)
        if wing is None:
            found.append(f"{module}: in no wing; move it into one, or add a row to the tables")
            continue
        if module in ("nuanced_core", "tune"):
            continue  # the public names, each loaded from wherever it lies
        package = wing.partition(".")[0]
        allowed = {wing, package, *(f"{package}.{name}" for name in WINGS[wing])}
        for imported, name in _imports(file, root):
            target = _target(imported, name, root)
            top = target.partition(".")[0]
            if package == "nuanced_core" and (top in SEARCH_PACKAGES or target.startswith("torch.utils.tensorboard")):
                found.append(f"{module}: imports {target}, which nuanced_core must not")
            elif top in ("nuanced_core", "tune") and name is not None and name.startswith("_"):
                found.append(f"{module}: imports the private name {imported}.{name}")
            elif target == package:
                found.append(f"{module}: imports {name} by its own package's public API; import it from its module")
            elif top == package and _wing_of(target) not in allowed:
                found.append(f"{module}: imports {target}; {wing} may import {', '.join(sorted(allowed))}")
    return found


def test_every_module_lies_in_a_wing_and_imports_lead_down() -> None:
    assert violations(ROOT) == []


def test_the_table_is_of_wings_that_exist_and_has_no_circle() -> None:
    below: set[str] = set()
    for wing, others in WINGS.items():  # each stands behind those that it may import
        assert (ROOT / Path(*wing.split(".")) / "__init__.py").is_file(), wing
        package = wing.partition(".")[0]
        assert {f"{package}.{name}" for name in others} <= below, wing
        below.add(wing)


@pytest.mark.parametrize("wing", [wing for wing in WINGS if "." in wing])
def test_a_wing_has_at_most_nine_files_and_says_what_it_is_for(wing: str) -> None:
    folder = ROOT.joinpath(*wing.split("."))
    assert len(list(folder.glob("*.py"))) <= MOST_FILES
    assert len(ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or "") > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("nuanced_core/kokoro/wrong.py", "from nuanced_core.losses.reference import style_loss", "losses.reference"),
        ("nuanced_core/config/wrong.py", "def f():\n    import nuanced_core.data.cache", "data.cache"),
        ("nuanced_core/data/wrong.py", "from nuanced_core import training", "nuanced_core.training"),
        ("nuanced_core/data/wrong.py", "import optuna", "optuna"),
        ("nuanced_core/data/wrong.py", "from torch.utils.tensorboard import SummaryWriter", "tensorboard"),
        ("tune/search/wrong.py", "from tune.sweep.driver import run_sweep", "tune.sweep.driver"),
        ("tune/sweep/wrong.py", "from nuanced_core.data.cache import _read", "private"),
        ("tune/wrong/wrong.py", "", "no wing"),
        ("nuanced_core/wrong.py", "", "no wing"),
        ("tune/wrong.py", "", "no wing"),
        ("nuanced_core/helpers/more/wrong.py", "", "no wing"),
        ("nuanced_core/kokoro/wrong.py", "from nuanced_core import start_run", "public API"),
        ("tune/search/wrong.py", "from tune import run_sweep", "public API"),
    ],
)
def test_a_planted_wrong_module_is_found(tmp_path: Path, file: str, text: str, problem: str) -> None:
    for package in ("nuanced_core", "tune"):
        for source in _sources(ROOT, package):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.slow
def test_nuanced_core_loads_nothing_of_the_search() -> None:
    modules = [_module(ROOT, file) for file in _sources(ROOT, "nuanced_core")]
    assert len(modules) > 30
    script = f"import sys, {', '.join(modules)}; print(*(set(sys.modules) & {SEARCH_PACKAGES!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_files_and_functions_are_short() -> None:
    long = []
    for file in [path for package in ("nuanced_core", "tune", "tests") for path in _sources(ROOT, package)]:
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            long.append(f"{file}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES:
                long.append(f"{file}: {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert long == []


def test_tests_mirror_the_wings() -> None:
    folders = {file.parent.relative_to(ROOT / "tests") for file in _sources(ROOT, "tests") if "test_" in file.name}
    tested = {".".join(folder.parts) for folder in folders} - {""}
    # A sweep's own folder tests tune's root, and the commands are tested together.
    expected = {wing for wing in WINGS if not wing.startswith("tune.cli.")} - {"tune"}
    assert tested == expected
