"""The source `hub`: Kokoro-82M and its voices from Hugging Face, Whisper from OpenAI's own address.

Each function fills an empty folder and returns a note about what it put there. Files are streamed here rather
than with `hf_hub_download`, whose retries take minutes where the hub is down or filtered.
"""

import errno
import functools
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_file
from nuanced_core.weights import manifest
from nuanced_core.weights.manifest import check_pack, check_sha256

__all__ = ["HubUnreachableError", "fill_kokoro", "fill_voices", "fill_whisper"]

PROBE_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 10.0
_CONNECTIONS = 8


class HubUnreachableError(Exception):
    """The hub did not answer, or not with the file; another source may serve."""


def fill_kokoro(folder: Path) -> str:
    """Write config.json and the published model; raises HubUnreachableError or WeightsError."""
    _require(_endpoint())
    for name, sha256 in (manifest.HUB_CONFIG, manifest.HUB_MODEL):
        _download(_hub_url(name), folder / name, sha256, _headers())
    return "as published"


def fill_voices(folder: Path) -> str:
    """Write the 54 packs as NAME.npy; raises HubUnreachableError or WeightsError."""
    import torch

    _require(_endpoint())
    names = sorted(manifest.NPM_VOICES)
    sha256 = _voice_hashes(names)
    headers = _headers()

    def one(name: str) -> None:
        path = folder / f"{name}.pt"
        _download(_hub_url(f"voices/{name}.pt"), path, sha256[name], headers)
        pack = torch.load(path, map_location="cpu", weights_only=True)
        np.save(folder / f"{name}.npy", check_pack(name, pack.float().numpy()))
        path.unlink()

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(one, names))
    return f"{len(names)} voices as published"


def fill_whisper(name: str, folder: Path) -> str:
    """Write NAME.pt as published; raises HubUnreachableError or WeightsError."""
    import whisper

    url = whisper._MODELS[name]
    parts = urlsplit(url)
    _require(f"{parts.scheme}://{parts.netloc}")
    # OpenAI puts the SHA-256 into the address; whisper's own download checks against the same.
    _download(url, folder / f"{name}.pt", parts.path.split("/")[-2], {})
    return "as published"


def _endpoint() -> str:
    # Read at each call (huggingface_hub reads it once, when imported) so that a test can set it.
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _hub_url(name: str) -> str:
    return f"{_endpoint()}/{manifest.HUB_REPO}/resolve/{manifest.HUB_REVISION}/{name}"


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def _require(base: str) -> None:
    if reason := _probe(base):
        raise HubUnreachableError(reason)


@functools.cache  # asked once per process: each question can cost PROBE_TIMEOUT_S
def _probe(base: str) -> str:
    """Return why nothing can be had from `base`, or nothing."""
    reasons: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(base, timeout=PROBE_TIMEOUT_S, follow_redirects=False)
            reasons.append("")
        # The classes are those of the HTTP library that huggingface_hub happens to use.
        except Exception as error:
            reasons.append(f"{base}: {_first_line(error)}")

    # Looking up a name has no timeout of its own; a thread can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S + 1)
    return reasons[0] if reasons else f"{base}: no answer in {PROBE_TIMEOUT_S:.0f} s"


def _voice_hashes(names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each voice: the pinned ones, and the rest as the hub's metadata has them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    paths = [f"voices/{name}.pt" for name in names]
    try:
        found = HfApi(endpoint=_endpoint()).get_paths_info(manifest.HUB_REPO, paths, revision=manifest.HUB_REVISION)
    except Exception as error:  # see _probe
        raise HubUnreachableError(f"{_endpoint()}: {_first_line(error)}") from error
    files = [info for info in found if isinstance(info, RepoFile)]
    told = {Path(file.path).stem: str(file.lfs.sha256) for file in files if file.lfs is not None}
    if missing := [name for name in names if name not in told]:
        raise WeightsError(f"voice {missing[0]}: the hub tells no SHA-256 for it; use the source packages or a folder")
    return told | manifest.HUB_VOICES


def _download(url: str, path: Path, sha256: str, headers: Mapping[str, str]) -> None:
    """Stream `url` to `path` and check it; an interrupted stream is taken up again while it gets on."""
    while True:
        before = path.stat().st_size if path.exists() else 0
        try:
            _stream(url, path, {**headers, "range": f"bytes={before}-"} if before else dict(headers))
            break
        except Exception as error:  # see _probe
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            if not path.exists() or path.stat().st_size <= before:
                raise HubUnreachableError(f"{url}: {_first_line(error)}") from error
    check_sha256(url, sha256, hash_file(path))


def _stream(url: str, path: Path, headers: dict[str, str]) -> None:
    from huggingface_hub import get_session

    headers = {**headers, "accept-encoding": "identity"}  # compression would break resuming
    with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT_S, follow_redirects=True) as response:
        response.raise_for_status()
        resumed = response.status_code == 206  # Partial Content; 200 starts at the beginning again
        with path.open("ab" if resumed else "wb") as file:
            for block in response.iter_bytes():
                file.write(block)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
