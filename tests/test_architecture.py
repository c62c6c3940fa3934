"""The house keeps its doors: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import nuanced_core

FORBIDDEN = {"tune", "ray", "optuna", "tensorboard"}
SOURCES = sorted(Path(nuanced_core.__file__).parent.rglob("*.py"))


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_nuanced_core_imports_nothing_of_tune() -> None:
    assert len(SOURCES) > 15
    for source in SOURCES:
        imported = _imported(ast.parse(source.read_text(encoding="utf-8")))
        wrong = {n for n in imported if n.split(".")[0] in FORBIDDEN or n.startswith("torch.utils.tensorboard")}
        assert not wrong, f"{source.name} imports {wrong}"


def test_nor_does_anything_that_it_loads() -> None:
    modules = ["nuanced_core.training", "nuanced_core.export", "nuanced_core.weights"]
    script = f"import sys, {', '.join(modules)}; print(*(set(sys.modules) & {FORBIDDEN!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_tune_uses_public_names_alone() -> None:
    sources = sorted((Path(nuanced_core.__file__).parents[1] / "tune").glob("*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nuanced_core"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], source.name
