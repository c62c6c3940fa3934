"""Upload to the hub and loading from there, against a local server with the routes that huggingface_hub uses."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants

from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, EndpointError, WeightsError
from nuanced_core.export.folder import export_encoder
from nuanced_core.export.hub import push_to_hub
from tune.cli.app import main

COMMIT = "c" * 40
TOKEN = "hf_test0123456789"
REPOSITORY = "me/my-encoder"


class LocalHub(ThreadingHTTPServer):
    """A hub with one repository."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.commits = 0
        self.refusal: tuple[int, str] | None = None  # status and message of every POST


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        if self.server.refusal is not None:
            status, message = self.server.refusal
            return self._json({"error": message}, status)
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._json({"url": f"http://127.0.0.1:{self.server.server_port}/{REPOSITORY}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == f"/api/models/{REPOSITORY}/preupload/main":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": modes})
        if path == f"/api/models/{REPOSITORY}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.commits += 1
            url = f"http://127.0.0.1:{self.server.server_port}/{REPOSITORY}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self._json({"error": f"no route {path}"}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            files = self.server.files.items()
            return self._json([{"type": "file", "path": k, "size": len(v), "oid": "0" * 40} for k, v in files])
        if path.startswith(f"/api/models/{REPOSITORY}"):
            names = [{"rfilename": name} for name in self.server.files]
            return self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        if path.startswith(start) and path.removeprefix(start) in self.server.files:
            name = path.removeprefix(start)
            content = self.server.files[name]
            headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{name}-{len(content)}"'}
            return self._answer(200, content, **headers)
        return self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        # huggingface_hub reads the environment when it is imported, which may have happened.
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return export_encoder(checkpoint, tmp_path / "exported")


def test_an_encoder_is_pushed_in_one_commit_and_loaded_by_its_id(
    folder: Path, hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "notes.txt").write_text("private")
    (folder / "evaluation.json").write_text("{}")
    (folder / "samples").mkdir()
    (folder / "samples" / "0_heard.mp3").write_bytes(b"mp3")
    before = (folder / "README.md").read_text()
    assert main(["export", str(folder), "--push", REPOSITORY, "--private", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(f"http://127.0.0.1:{hub.server_port}/{REPOSITORY}/commit/{COMMIT}: ")
    names = {"README.md", "config.json", "model.safetensors", "evaluation.json", "samples/0_heard.mp3"}
    assert set(hub.files) == names and hub.commits == 1
    (created,) = hub.created
    assert created["name"] == "my-encoder" and (created.get("private") or created["visibility"] == "private")
    assert f'StyleEncoder.from_pretrained("{REPOSITORY}")' in hub.files["README.md"].decode()
    assert (folder / "README.md").read_text() == before and 'from_pretrained("exported")' in before

    found = StyleEncoder.from_pretrained(REPOSITORY).state_dict()
    expected = StyleEncoder.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-8]
    shutil.rmtree(tmp_path / "hub cache")
    with pytest.raises(WeightsError, match="cut off or changed"):
        StyleEncoder.from_pretrained(REPOSITORY)
    with pytest.raises(WeightsError, match=r"me/other: no such file .* cannot be had from the Hugging Face hub \("):
        StyleEncoder.from_pretrained("me/other")
    with pytest.raises(WeightsError, match=r"^models/default/config\.json: no such file"):
        StyleEncoder.from_pretrained("models/default")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [((403, "You may not write here"), "You may not write here"), ((500, "down"), "the hub did not take it: ")],
)
def test_a_hub_that_refuses_is_one_line(
    refusal: tuple[int, str], message: str, folder: Path, hub: LocalHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refusal = refusal
    with pytest.raises(EndpointError, match=message) as raised:
        push_to_hub(folder, REPOSITORY)
    line = str(raised.value)
    assert line.startswith(f"--push {REPOSITORY}: ") and "\n" not in line and TOKEN not in line and not hub.files
    assert "no results on held-out voices" in caplog.text


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(folder: Path, hub: LocalHub) -> None:
    for repository in ("name", "a/b/c", "../up", "me/", "me/na me"):
        with pytest.raises(ConfigError, match="give OWNER/NAME"):
            push_to_hub(folder, repository)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="cut off or changed"):
        push_to_hub(folder, REPOSITORY)
    assert not hub.created


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--private"], "--private: concerns --push"),
        (["--out", "other"], "--out: {folder} is exported already"),
        (["--trial", "1"], "--trial: {folder} is exported already"),
        (["--push", "name"], "--push name: not a repository of the hub"),
    ],
)
def test_options_that_contradict_are_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"nuanced: error: {message.format(folder=folder)}")


def test_onnx_is_added_to_an_exported_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folder), "--onnx"]) == 0
    assert capsys.readouterr().out == f"{folder / 'encoder.onnx'}\n"
