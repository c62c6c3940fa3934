"""tune.sweep.record: a new folder appears whole or not at all."""

from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.disk import check_disk
from tune.sweep.record import create_folder, new_folder


def test_a_folder_appears_with_its_settings_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    create_folder(folder, "sweep.yaml", {"trials": 3})
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        create_folder(tmp_path / "file" / "b", "sweep.yaml", {})
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(DiskError):
        create_folder(taken, "sweep.yaml", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_outputs_on_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another --outputs"):
        check_disk(tmp_path / "file" / "b", 1)


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        new_folder(tmp_path, "a")
