"""``nuanced dashboard``: the real optuna-dashboard on a study that a sweep made."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError
from tune.show.dashboard import serve
from tune.sweep.driver import SweepResult

Swept = tuple[SweepResult, list[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_shows_the_study_of_a_sweep_on_loopback_alone(pruned: Swept) -> None:
    result, _ = pruned
    port = free_port()
    command = ["dashboard", str(result.folder), "--port", str(port)]
    script = f"import sys; from tune.cli.app import main; sys.exit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    studies = json.load(answer)["study_summaries"]
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        assert [study["study_name"] for study in studies] == ["toy"]
        number = studies[0]["study_id"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{number}", timeout=5) as answer:
            trials = json.load(answer)["trials"]
        assert len(trials) == len(result.status["trials"])
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        places = {line.split()[1] for line in listening if line.split()[3] == "0A"}
        assert f"0100007F:{port:04X}" in places and f"00000000:{port:04X}" not in places
    finally:
        process.terminate()
        process.communicate()


def test_what_cannot_be_shown_is_a_config_error(pruned: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not the folder of a sweep"):
        serve(tmp_path, 8080)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"--port \d+: cannot be used"):
            serve(pruned[0].folder, taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--port 99999: cannot be used"):
        serve(pruned[0].folder, 99999)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ConfigError, match=r"is an extra: install it with pip install 'nuanced-speech\[dashboard\]'"):
        serve(pruned[0].folder, 8080)
