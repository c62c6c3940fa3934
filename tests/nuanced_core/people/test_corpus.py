"""nuanced_core.people.corpus: layouts, the split by speaker, and folders that cannot be used."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from nuanced_core.errors import AudioError
from nuanced_core.people.corpus import SPLITS, check_speakers, find_people, split_of

# Names by split, so that a corpus of them can be used for training.
TRAIN, VALIDATION, TEST = ("anna", "carla", "david", "emma"), ("felix",), ("ben",)
OWN = (*TRAIN, *VALIDATION, *TEST)
READERS = ("103", "1034", "1040", "1069", "1081", "1088", "14", "26")


def make(folder: Path, files: Iterable[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, **arguments: bool) -> dict[str, list[str]]:
    corpus = find_people(folder, **arguments)
    assert list(corpus.speakers) == sorted(corpus.speakers)
    return {name: [str(file.relative_to(folder)) for file in files] for name, files in corpus.speakers.items()}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="nuanced_core.people")
    return caplog


LAYOUTS = {
    "librispeech": [f"{r}/{c}/{r}-{c}-0000.flac" for r in READERS for c in (1240, 1241)],
    "libritts": [f"{r}/{c}/{r}_{c}_000001_000000.wav" for r in READERS for c in (1240, 1241)],
    "vctk": [f"p{n}/p{n}_{k:03}_mic1.flac" for n in range(225, 245) for k in (1, 2)],
    "flat": [f"{r}/{r}-1240-{k:04}.flac" for r in READERS for k in range(2)],
    "own": [f"{n}/{where}" for n in OWN for where in ("a.wav", "Phone/January/b.M4A")],
}


ABOVE = ("", "only", "train-clean-100/LibriSpeech")


@pytest.mark.parametrize(
    ("layout", "above"),
    # Nothing says which folder of one's own is a speaker's.
    [(layout, above) for layout in LAYOUTS for above in ABOVE if layout != "own" or not above],
)
def test_speakers_of_public_corpora_are_found_also_below_other_folders(
    tmp_path: Path, logged: pytest.LogCaptureFixture, layout: str, above: str
) -> None:
    files = [str(Path(above, name)) for name in LAYOUTS[layout]]
    speakers = found(make(tmp_path, [*files, "README.md", f"{above}/LICENSE", ".hidden/x/a.wav", "empty/notes.txt"]))
    assert sorted(name for names in speakers.values() for name in names) == sorted(files)
    assert set(speakers) == {Path(name).parts[0] for name in LAYOUTS[layout]}
    assert all(len(names) == 2 for names in speakers.values())
    assert ("the speakers are the folders in" in logged.text) == bool(above)


def test_several_sets_of_a_public_corpus_are_one_corpus(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    sets = {"train-clean-100": READERS[:5], "dev-clean": READERS[5:]}
    make(tmp_path, [f"{s}/{r}/9/{r}-9-0000.flac" for s, readers in sets.items() for r in readers])
    assert set(found(tmp_path)) == set(READERS)
    assert "the speakers are the folders in dev-clean, train-clean-100" in logged.text


def test_an_only_folder_with_many_folders_is_that_of_the_speakers(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    names = [f"speaker {n}" for n in range(12)]
    assert set(found(make(tmp_path, [f"all/{n}/a.wav" for n in names]))) == set(names)
    assert "the speakers are the folders in all" in logged.text
    # Sessions of one person, in fewer folders, are not taken for speakers.
    make(tmp_path / "few", [f"anna/{n}/a.wav" for n in names[:5]])
    with pytest.raises(
        AudioError, match=r"only 1 speaker \(anna\); .* if the folders in anna are .*, name .*few/anna$"
    ):
        find_people(tmp_path / "few")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", ["a.wav"])
    make(tmp_path / "people", [f"{name}/a.wav" for name in OWN])
    (tmp_path / "people" / "greta").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "people" / "anna" / "up").symlink_to(tmp_path / "people")
    assert set(find_people(tmp_path / "people").speakers) == {*OWN, "greta"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"no such folder; name a folder that holds a folder of recordings for each speaker$"),
        ([], r"is empty; put a folder of recordings"),
        (["anna/notes.txt", "README"], r"holds no sound file \(\.wav, .*; put recordings in it$"),
        (["a.wav", "b.flac"], r"holds sound files \(a.wav, b.flac\), but no folders; move the recordings of each"),
        (["anna/a.wav"], r"only 1 speaker \(anna\); at least 4 are needed: add a folder of recordings for each"),
        (["a/x.wav", "b/x.wav", "c/x.wav"], r"only 3 speakers \(a, b, c\); at least 4 are needed: add a folder"),
        (
            [f"{s}/{n}/a.wav" for s in ("one", "two") for n in OWN],
            r"only 2 speakers \(one, two\); .* if the folders in one are the speakers, name .*/one$",
        ),
        (
            [*(f"train/{r}/9/{r}-9-0.flac" for r in READERS), *(f"{n}/a.wav" for n in OWN)],
            r"train/\d+ is a speaker's folder, but those in \w+ are at another depth; name .*, such as train in it$",
        ),
        (
            [f"{c}/{r}/9/{r}-9-0.flac" for c in ("LibriSpeech", "LibriTTS") for r in READERS],
            r"\d+ is a speaker, but has folders in LibriSpeech and in LibriTTS; name a folder whose own folders",
        ),
        (
            [f"{n}/a.wav" for n in TRAIN],
            r"none of the 4 speakers is for validation, .* rename a folder, .* anna to \S+$",
        ),
        (
            [f"{n}/a.wav" for n in ("felix", "felix-5", "felix-24", "felix-38")],
            r"none of the 4 speakers is for training, .* for example felix to \S+$",
        ),
    ],
    ids=[
        "missing",
        "empty",
        "no sound",
        "no folders",
        "one",
        "three",
        "sets",
        "depths",
        "twice",
        "train",
        "validation",
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_with_the_fix(
    tmp_path: Path, files: list[str] | None, message: str
) -> None:
    folder = tmp_path / "people"
    if files is not None:
        folder.mkdir()
        make(folder, files)
    with pytest.raises(AudioError, match=rf"^data\.people: {folder}: .*{message}") as caught:
        find_people(folder)
    assert "\n" not in str(caught.value)


def test_the_suggested_name_makes_the_corpus_usable(tmp_path: Path) -> None:
    make(tmp_path, [f"{n}/a.wav" for n in TRAIN])
    with pytest.raises(AudioError) as caught:
        find_people(tmp_path)
    old, new = str(caught.value).rpartition("for example ")[2].split(" to ")
    (tmp_path / old).rename(tmp_path / new)
    assert new in find_people(tmp_path).of_splits("validation").speakers


def test_a_file_instead_of_a_folder_and_files_beside_the_folders(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, ["a.wav", "people/b.wav", *(f"people/{name}/a.wav" for name in OWN)])
    with pytest.raises(AudioError, match=r"^--people: .*/a\.wav: is a file; name a folder"):
        find_people(tmp_path / "a.wav", place="--people")
    assert set(find_people(tmp_path / "people").speakers) == set(OWN)
    assert "1 sound files in no speaker's folder are left out: b.wav" in logged.text


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "people", [f"{name}/a.wav" for name in OWN])
    assert find_people("~/people").folder == tmp_path / "people"


def test_few_speakers_are_enough_where_nothing_is_trained(tmp_path: Path) -> None:
    assert set(found(make(tmp_path, ["anna/a.wav"]), for_training=False)) == {"anna"}


def test_the_split_is_that_of_the_hash_and_never_changes(tmp_path: Path) -> None:
    # SHA-256 begins with 454f63ac (64 modulo 100), 6719009a (2) and 960f9842 (18).
    expected = {"103": "train", "1034": "test", "felix": "validation"}
    assert {name: split_of(name) for name in expected} == expected
    shares = {split: sum(split_of(str(n)) == split for n in range(10_000)) / 10_000 for split in SPLITS}
    assert shares == pytest.approx({"train": 0.73, "validation": 0.12, "test": 0.15}, abs=0.01)
    few = find_people(make(tmp_path, [f"{name}/a.wav" for name in OWN]))
    splits = {split: set(few.of_splits(split).speakers) for split in SPLITS}
    assert splits == {"train": set(TRAIN), "validation": set(VALIDATION), "test": set(TEST)}
    more = find_people(make(tmp_path, [f"{name}/a.wav" for name in READERS]))
    assert all(splits[split] <= set(more.of_splits(split).speakers) for split in SPLITS)
    assert set(more.of_splits("train", "validation").speakers) == set(more.speakers) - set(
        more.of_splits("test").speakers
    )


def test_speakers_may_be_fewer_where_the_caller_says_so() -> None:
    check_speakers({"anna", "felix"}, "here", minimum=2)
    with pytest.raises(AudioError, match=r"^here: only 2 speakers \(anna, felix\); at least 4 are needed: do this$"):
        check_speakers({"anna", "felix"}, "here", "do this")
