"""The public names of nuanced_core and tune: each can be imported, is documented, and is all that the README uses."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nuanced_core
import tune

ROOT = Path(__file__).parents[1]
PACKAGES = {"nuanced_core": nuanced_core, "tune": tune}


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_every_public_name_is_there_and_documented(package: ModuleType) -> None:
    assert package.__all__ and set(package.__all__) == set(package._MODULES)
    for name in package.__all__:
        assert name in dir(package)
        assert len(getattr(package, name).__doc__ or "") > 20, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_importing_the_packages_loads_neither_torch_nor_ray() -> None:
    script = "import sys, nuanced_core, tune; print(*(set(sys.modules) & {'torch', 'ray', 'optuna', 'transformers'}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_readme_s_python_uses_public_names() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    used = [
        (node.module, alias.name)
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES
        for alias in node.names
    ]
    assert used
    for module, name in used:
        assert name in PACKAGES[module].__all__
