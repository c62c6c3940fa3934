"""Files that run code if they are unpickled, or loaded as YAML with objects, in place of each file that is read."""

import io
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nuanced_core.errors import NuancedError
from tests.fuzz_targets import TARGETS


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def hostile(folder: Path) -> dict[str, bytes]:
    """Files of several formats, each of which makes ``folder`` if it is loaded carelessly."""
    culprit = MakesFolder(folder)
    torch.save(culprit, saved := io.BytesIO())
    torch.save({"model_state_dict": culprit, "style_encoder": culprit}, inside := io.BytesIO())
    np.save(array := io.BytesIO(), np.array([culprit], object), allow_pickle=True)
    np.savez(archive := io.BytesIO(), me=np.array([culprit], object))
    return {
        "pickle": pickle.dumps(culprit),
        "pickle of protocol 0": pickle.dumps(culprit, 0),
        "PyTorch": saved.getvalue(),
        "PyTorch, in a dictionary": inside.getvalue(),
        "NumPy": array.getvalue(),
        "NumPy, in an archive": archive.getvalue(),
        "YAML": f"!!python/object/apply:os.mkdir ['{folder}']".encode(),
        "YAML, in a mapping": f"train: !!python/object/apply:os.mkdir ['{folder}']".encode(),
    }


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_is_read_runs_code(name: str, tmp_path: Path) -> None:
    target, file = TARGETS[name], tmp_path / "now" / TARGETS[name].file
    target.originals(tmp_path)
    file.parent.mkdir(parents=True, exist_ok=True)
    for what, data in hostile(tmp_path / "ran").items():
        file.write_bytes(data)
        with suppress(NuancedError):
            target.read(file)
        assert not (tmp_path / "ran").exists(), what


def test_each_of_these_files_runs_code_where_it_is_loaded_carelessly(tmp_path: Path) -> None:
    careless = {
        "pickle": pickle.loads,
        "PyTorch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "NumPy": lambda data: [*np.atleast_1d(np.load(io.BytesIO(data), allow_pickle=True))],
        "NumPy, in an archive": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["me"],
        "YAML": yaml.unsafe_load,
    }
    for what, data in hostile(tmp_path / "ran").items():
        load = careless.get(what) or careless[what.partition(",")[0].partition(" of")[0]]
        load(data)
        assert (tmp_path / "ran").is_dir(), what
        (tmp_path / "ran").rmdir()
