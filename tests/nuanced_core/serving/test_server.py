"""nuanced_core.serving.server without the extra ``serve``."""

import sys
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError
from nuanced_core.serving.server import serve


@pytest.mark.parametrize("missing", ["python_multipart", "starlette", "uvicorn"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"^serve: needs {missing}: pip install 'nuanced-speech\[serve\]'$"):
        serve(tmp_path)
