"""tune.cluster.ray_runtime: Ray in environments and temporary folders of any name, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from nuanced_core.errors import ConfigError, DiskError
from tests.tune.conftest import PRUNED
from tune.cluster import disk, ray_runtime
from tune.cluster.machines import ThisMachine
from tune.cluster.ray_runtime import check_local_ray, temporary_parent

ROOT = str(Path(__file__).parents[3])
ODD = "odd \"ä $HOME %s #?*[x]&; '\\ " + "long" * 20
# Runs the toy sweep, or only Ray where no folder for it is given.
SCRIPT = """
import logging, os, sys, time
from pathlib import Path
from nuanced_core.errors import NuancedError
from tests.tune import toy
from tune.cluster import ray_runtime
from tune.cluster.machines import ThisMachine
from tune.config.sweep_config import as_override, load_sweep_config
from tune.sweep.driver import run_sweep

def main(config=None, outputs=None, *, seconds=None, wait=0.0, temp=None):
    ray_runtime.WORKER_SECONDS = seconds or ray_runtime.WORKER_SECONDS
    try:
        if config is None:
            with ThisMachine(temp).started():
                print("started", flush=True)
                time.sleep(wait)
        else:
            settings = load_sweep_config(Path(config), [as_override("sweep.outputs", outputs), "sweep.trials=1"])
            print(run_sweep(settings, name="toy", services=toy.services(machines=ThisMachine(temp))).exit_code)
    except NuancedError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def begin(call: str, python: str = sys.executable, **variables: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": ROOT, "RAY_enable_worker_prestart": "0", **variables}
    return subprocess.Popen(
        [python, "-c", f"{SCRIPT}\nmain({call})"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment_in(folder: Path) -> str:
    """Make a virtual environment with this one's packages, Ray's own files among them, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    package = Path(ray.__file__).parent
    (packages / "ray").symlink_to(package)
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return str(folder / "bin" / "python")


def test_a_sweep_runs_in_an_environment_and_with_a_temporary_folder_of_odd_names(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(PRUNED.replace("trials: 10", "trials: 2"))
    temporary = tmp_path / ODD
    temporary.mkdir()
    python = environment_in(tmp_path / 'a "ä $HOME b')
    process = begin(f"{str(tmp_path / 'toy.yaml')!r}, {str(tmp_path / ODD / 'o')!r}", python, TMPDIR=str(temporary))
    output, errors = process.communicate(timeout=300)
    assert output == "0\n", errors
    assert [path.name for path in temporary.iterdir()] == ["o"]
    links = [path for path in Path("/tmp").glob("nuanced-ray-*") if path.is_symlink()]
    assert not [link for link in links if tmp_path in link.readlink().parents]


def test_a_ray_whose_worker_processes_do_not_start_ends_with_the_reason(tmp_path: Path) -> None:
    shell = tmp_path / "bin" / "bash"
    shell.parent.mkdir()
    shell.write_text("#!/bin/sh\necho the shell is broken >&2\nexit 3\n")
    shell.chmod(0o755)
    process = begin(f"seconds=5, temp={str(tmp_path)!r}", PATH=f"{shell.parent}{os.pathsep}{os.environ['PATH']}")
    _, errors = process.communicate(timeout=300)
    line = errors.splitlines()[-1]
    assert line.startswith("ClusterError: none of Ray's worker processes starts within 5 s")
    (folder,) = tmp_path.glob("nuanced-ray-*")
    assert line.endswith(f"Ray's logs: {folder}") and any(folder.glob("r/session_*/logs/raylet.err"))


def test_the_reason_is_the_last_line_that_ray_s_processes_wrote(tmp_path: Path) -> None:
    logs = tmp_path / "r" / "session_1" / "logs"
    logs.mkdir(parents=True)
    for seconds, (name, text) in enumerate(
        {"worker.err": "early", "raylet.err": "a\nexec: not found\n\n", "x.err": ""}.items()
    ):
        (logs / name).write_text(text)
        os.utime(logs / name, (seconds, seconds))
    assert ray_runtime._last_words(tmp_path) == " (raylet.err: exec: not found)"
    assert ray_runtime._last_words(logs) == ""


def test_the_next_start_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    parent = tmp_path / ODD
    process = begin(f"wait=60, temp={str(parent)!r}")
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.kill()
    process.communicate(timeout=30)
    (left,) = parent.glob("nuanced-ray-*")
    link = Path("/tmp") / left.name
    assert link.readlink() == left
    (parent / "nuanced-ray-file").touch()
    (parent / "nuanced-ray-folder").mkdir()
    others = {parent / "nuanced-ray-file", parent / "nuanced-ray-folder"}
    with ray_runtime._RayFolder(parent) as first:
        assert set(parent.iterdir()) == {first.folder, *others}
        assert not link.is_symlink()
        with ray_runtime._RayFolder(parent) as second:
            assert first.folder.is_dir() and second.folder.is_dir()
            assert first.path.parent.samefile(first.folder) and first.folder.stat().st_mode & 0o777 == 0o700
    assert set(parent.iterdir()) == others
    assert not first.path.parent.is_symlink() and not second.path.parent.is_symlink()


@pytest.mark.parametrize("name", ["a'b", "a\\b", "a\udcffb"])
def test_an_environment_that_ray_cannot_run_in_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "executable", f"/opt/{name}/bin/python")
    with pytest.raises(ConfigError, match="make the virtual environment in another folder"):
        ThisMachine().joined()
    monkeypatch.undo()
    check_local_ray()


def test_a_path_without_bash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="PATH has no bash"):
        check_local_ray()


def test_a_temporary_folder_that_cannot_be_used_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file: not a folder that can be written; name another folder with --temp DIR"):
        check_local_ray(str(tmp_path / "file"))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 2**20)
    with pytest.raises(DiskError, match=r"0\.0 GiB are free.*name another folder with --temp DIR or RAY_TMPDIR"):
        check_local_ray(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_temporary_folder_is_the_named_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert temporary_parent() == tmp_path
    assert temporary_parent("relative") == Path.cwd() / "relative"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert temporary_parent("~/ray") == tmp_path / "ray"
    assert ThisMachine("a b").options == " --temp 'a b'"
    assert ThisMachine().options == ""
