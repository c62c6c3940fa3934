"""nuanced_core.paths: the home folder in paths as users write them."""

from pathlib import Path

import pytest

from nuanced_core.paths import user_path
from nuanced_core.text.sentences import load_sentences


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/mine") == tmp_path / "mine"
    assert user_path(Path("~")) == tmp_path
    for kept in ("a/~/b", "train", "/data/~me", "~no-such-user/x"):
        assert user_path(kept) == Path(kept)


def test_sentences_are_read_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("A red door.\n")
    assert load_sentences("~/mine.txt") == ("A red door.",)


def test_a_folder_without_a_name_of_its_own_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "outputs" / "a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert user_path(".") == folder
    assert user_path("..") == folder.parent
    assert user_path("b") == Path("b")
