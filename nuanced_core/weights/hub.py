"""The source ``hub``: Kokoro-82M and its voices from Hugging Face, Whisper from OpenAI's server.

Each ``fill_*`` function writes files into an empty folder and returns a note on them. Files are not downloaded with
``hf_hub_download``, whose retries take minutes if the hub is down or blocked.
"""

import errno
import functools
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_file
from nuanced_core.progress import progress_bar
from nuanced_core.weights import manifest
from nuanced_core.weights.manifest import check_pack, check_sha256

__all__ = ["HubUnreachableError", "fill_kokoro", "fill_voices", "fill_whisper"]

PROBE_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 10.0
_MEGABYTE = 10**6
_CONNECTIONS = 8
_OTHER_SOURCE = "its SHA-256 is right, so fetching it again would not help: use the source packages or a folder"


class HubUnreachableError(Exception):
    """The hub did not answer, or did not send the file; another source may have it."""


def fill_kokoro(folder: Path) -> str:
    """Write config.json and the published model.

    Raises:
        HubUnreachableError: the hub does not send a file.
        WeightsError: a file is not the expected one.
    """
    _require_reachable(_endpoint())
    for name, sha256 in (manifest.HUB_CONFIG, manifest.HUB_MODEL):
        _download(_hub_url(name), folder / name, sha256, _headers())
    return "as published"


def fill_voices(folder: Path) -> str:
    """Write the 54 voice packs as NAME.npy.

    Raises:
        HubUnreachableError, WeightsError: as ``fill_kokoro``; or the hub has no SHA-256 for a voice.
    """
    import torch

    _require_reachable(_endpoint())
    names = sorted(manifest.NPM_VOICES)
    sha256 = _voice_hashes(names)
    headers = _headers()

    def fetch_voice(name: str) -> None:
        path = folder / f"{name}.pt"
        _download(_hub_url(f"voices/{name}.pt"), path, sha256[name], headers)
        pack = torch.load(path, map_location="cpu", weights_only=True)
        np.save(folder / f"{name}.npy", check_pack(f"voice {name}", pack.float().numpy(), _OTHER_SOURCE))
        path.unlink()

    with ThreadPoolExecutor(_CONNECTIONS) as pool, progress_bar("fetching voices", len(names)) as advance:
        for _ in pool.map(fetch_voice, names):
            advance()
    return f"{len(names)} voices as published"


def fill_whisper(name: str, folder: Path) -> str:
    """Write NAME.pt as published.

    Raises:
        HubUnreachableError, WeightsError: as ``fill_kokoro``.
    """
    import whisper

    url = whisper._MODELS[name]
    parts = urlsplit(url)
    _require_reachable(f"{parts.scheme}://{parts.netloc}")
    # The URL contains the SHA-256; whisper's own download is checked against it too.
    _download(url, folder / f"{name}.pt", parts.path.split("/")[-2], {})
    return "as published"


def _endpoint() -> str:
    # Read at each call, so that a test can set it; huggingface_hub reads it only when it is imported.
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _hub_url(name: str) -> str:
    return f"{_endpoint()}/{manifest.HUB_REPO}/resolve/{manifest.HUB_REVISION}/{name}"


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def _require_reachable(base: str) -> None:
    if reason := _probe(base):
        raise HubUnreachableError(reason)


@functools.cache  # once per process: each probe can take PROBE_TIMEOUT_S
def _probe(base: str) -> str:
    """Return why ``base`` cannot be reached, or an empty string if it can."""
    reasons: list[str] = []

    def send_request() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(base, timeout=PROBE_TIMEOUT_S, follow_redirects=False)
            reasons.append("")
        # The exception types depend on the HTTP library that huggingface_hub uses.
        except Exception as error:
            reasons.append(f"{base}: {_first_line(error)}")

    # The name look-up of the host has no timeout, so it runs in a thread that can be abandoned.
    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S + 1)
    return reasons[0] if reasons else f"{base}: no answer in {PROBE_TIMEOUT_S:.0f} s"


def _voice_hashes(names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each voice: the pinned one, or else that of the hub's metadata."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    paths = [f"voices/{name}.pt" for name in names]
    try:
        found = HfApi(endpoint=_endpoint()).get_paths_info(manifest.HUB_REPO, paths, revision=manifest.HUB_REVISION)
    except Exception as error:  # of any type, see _probe
        raise HubUnreachableError(f"{_endpoint()}: {_first_line(error)}") from error
    files = [info for info in found if isinstance(info, RepoFile)]
    hashes = {Path(file.path).stem: str(file.lfs.sha256) for file in files if file.lfs is not None}
    if missing := [name for name in names if name not in hashes]:
        raise WeightsError(f"voice {missing[0]}: the hub has no SHA-256 for it; use the source packages or a folder")
    return hashes | manifest.HUB_VOICES


def _download(url: str, path: Path, sha256: str, headers: Mapping[str, str]) -> None:
    """Download ``url`` to ``path`` and verify it; resume after an interruption if data had arrived."""
    while True:
        size_before = path.stat().st_size if path.exists() else 0
        try:
            _stream(url, path, {**headers, "range": f"bytes={size_before}-"} if size_before else dict(headers))
            break
        except Exception as error:  # of any type, see _probe
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            if not path.exists() or path.stat().st_size <= size_before:
                raise HubUnreachableError(f"{url}: {_first_line(error)}") from error
    check_sha256(url, sha256, hash_file(path))


def _stream(url: str, path: Path, headers: dict[str, str]) -> None:
    from huggingface_hub import get_session

    headers = {**headers, "accept-encoding": "identity"}  # byte ranges refer to the uncompressed file
    with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT_S, follow_redirects=True) as response:
        response.raise_for_status()
        resumed = response.status_code == 206  # Partial Content; with 200 the server sends the whole file
        megabytes = int(response.headers.get("content-length", 0)) // _MEGABYTE
        # The voices have one bar for all of them.
        bar = progress_bar(f"fetching {path.name}, MB", megabytes) if megabytes else nullcontext(lambda: None)
        with path.open("ab" if resumed else "wb") as file, bar as advance:
            received = 0
            for block in response.iter_bytes():
                file.write(block)
                before, received = received, received + len(block)
                for _ in range(received // _MEGABYTE - before // _MEGABYTE):
                    advance()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
