"""The command `nuanced cache`: what it lists and removes."""

from pathlib import Path

import pytest
import torch

from nuanced_core.data import cache as cache_module
from nuanced_core.data.cache import Cache
from nuanced_core.hashing import content_key
from tune.cli.app import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path))
    monkeypatch.delenv("NUANCED_CACHE_LIMIT", raising=False)
    for number in range(3):
        Cache(tmp_path).save("clips", content_key(number), {"audio": torch.ones(1000) * number})
    Cache(tmp_path).save("features", content_key(9), {"0": torch.ones(10)})
    monkeypatch.setattr(cache_module, "_used", set())  # the command is another process
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model").write_bytes(bytes(10**5))
    return tmp_path


def _table(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """The command's table by the first word of each line."""
    assert main(["cache", *arguments]) == 0
    return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}


def test_it_lists_kinds_entries_and_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of = {kind: sum(p.stat().st_size for p in (folder / kind).rglob("*.*")) for kind in ("clips", "features")}
    table = _table(capsys)
    assert table["clips"] == ["3", f"{bytes_of['clips'] / 1000:.1f}", "kB"]
    assert table["features"] == ["1", f"{bytes_of['features']}", "B"]
    assert table["windows"] == table["baselines"] == ["0", "0", "B"]
    assert table["total"] == ["4", f"{sum(bytes_of.values()) / 1000:.1f}", "kB", str(folder)]
    assert "limit" not in table
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "3GB")
    assert _table(capsys)["limit"] == ["3.0", "GB", "NUANCED_CACHE_LIMIT"]


def test_it_prunes_to_a_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _table(capsys, "--prune", "1kB")["pruned:"] == ["3", "entries", "removed"]
    assert _table(capsys, "--prune", "0")["total"][:3] == ["0", "0", "B"]
    assert (folder / "weights" / "model").exists()


def test_it_removes_damaged_entries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _table(capsys, "--verify")["verified:"] == ["0", "damaged", "entries", "removed"]
    file = next((folder / "clips").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    table = _table(capsys, "--verify")
    assert table["verified:"][0] == "1" and table["clips"][0] == "2"


def test_a_wrong_size_is_reported_before_anything_is_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--verify", "--prune", "half"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "nuanced: error: --prune: 'half' is not a size; write 10GB, 500MB or 0\n"
    assert len(Cache(folder).entries()) == 4
