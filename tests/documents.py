"""The commands of the documents; and those of README.md and CONTRIBUTING.md run one after the other, from nothing.

    python -m tests.documents [FOLDER]

clones what this repository has committed into FOLDER (default: a temporary one that is removed), sets it up there, runs
every command in the order in which the documents name it, and prints a table of commands, exit codes and seconds. The
exit code is 1 if one failed. A command takes the quickest real way: ``INSTEAD`` says what is run for it, ``NOT_RUN``
why it is not run. Model files come from the user's cache. ``tests/test_documents.py`` parses all commands.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["BEFORE", "DOCUMENTS", "INSTEAD", "NOT_RUN", "RUN", "Command", "blocks", "commands", "inline", "to_run"]

ROOT = Path(__file__).parents[1]
RUN = ("README.md", "CONTRIBUTING.md")
DOCUMENTS = (*RUN, "SECURITY.md", "docs/ARCHITECTURE.md", "docs/CLUSTER.md", "docs/RESULTS.md")
PROGRAMS = ("nuanced", "make", "python", "pytest", "pip", "git", "curl", "tensorboard", "wandb", "ray")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

_HEAVY = "takes minutes of an idle machine; tests/test_documents.py parses its options"
_GPU = "needs a GPU and recordings of people"
NOT_RUN = {
    "make test": "the tests: CI runs them",
    "make test-fast": "the tests: CI runs them",
    "make sweep CONFIG=configs/single_3090.yaml": _GPU,
    "make bench": _HEAVY,
    "python -m tests.benchmarks.step --rounds 5": _HEAVY,
    "python -m tests.benchmarks.time_to_loss --steps 72 --most 400": _HEAVY,
    "python -m tests.benchmarks.memory": _HEAVY,
    "python -m tests.benchmarks.sweep --trials 100 --sizes 100,1000,5000": _HEAVY,
    "python -m tests.benchmarks.trials": _HEAVY,
    "python -m tests.benchmarks.conversion PEOPLE --limit 8": _HEAVY,
    "nuanced export models/quickstart --push OWNER/NAME": "needs an account of the hub",
    "wandb login": "needs an account",
    "wandb sync outputs/NAME/trials/*/wandb/offline-run-*": "needs an account",
}
# Without a person to ask, a clip of a stock voice is the recording; a sweep has two short trials.
_TEXT = (
    "The ship left the harbour before sunrise, and the gulls followed it for an hour, until the coast was out of sight."
)
_SHORT = "--set train.epochs=1 --set train.steps_per_epoch=4 --set show.clips=0"
# A folder that has been set up before is brought up to date, and emptied of all else.
_CLONE = (
    "if [ -d nuanced-speech ]; then cd nuanced-speech && git pull -q && git clean -qfdx -e .venv -e '*.egg-info'; "
    "else git clone -q {root} nuanced-speech && cd nuanced-speech; fi"
)
INSTEAD = {
    "git clone REPOSITORY nuanced-speech && cd nuanced-speech": _CLONE,
    "nuanced --install-completion": "HOME=$PWD/.. nuanced --install-completion",
    "make sweep": "make sweep CONFIG=../quickstart.yaml",
    "nuanced sweep configs/single_3090.yaml --name first --trials 50 --set train.epochs=20": "WANDB_MODE=offline "
    f"nuanced sweep ../quickstart.yaml --name first {_SHORT} --set 'sweep.loggers=[tensorboard, mlflow, wandb]'",
    "nuanced sweep --resume outputs/quickstart": "nuanced sweep --resume outputs/quickstart --trials 3",
    "nuanced sweep --resume outputs/first": f"nuanced sweep --resume outputs/first --trials 3 {_SHORT}",
    "nuanced voice a.wav b.mp3 -o me.pt --refine 2 --blend af_heart=0.3": "nuanced voice a.wav b.mp3 -o me.pt "
    "--refine 0.1 --blend af_heart=0.3",
    'nuanced speak "Good morning." -o - --like me.wav | ffplay -nodisp -': 'nuanced speak "Good morning." -o - '
    "--like me.wav | wc -c",
    "nuanced reply in.wav out.wav --llm http://localhost:8080/v1 --model llama3": "nuanced reply in.wav out.wav "
    "--llm {chat} --model llama3",
    "nuanced train CONFIG": f"nuanced train ../quickstart.yaml --name one {_SHORT}",
    "nuanced evaluate MODEL": "nuanced evaluate models/default --sentences 2 --no-identity --no-degraded",
    "nuanced evaluate MODEL --people DIR": "nuanced evaluate models/default --people people --split all --limit 2 "
    "--no-degraded",
    "nuanced evaluate MODEL --people DIR --refine STEPS": "nuanced evaluate models/default --people people --split all "
    "--limit 2 --no-degraded --refine 1",
    "nuanced board DIR": "nuanced board outputs/one",
    "nuanced report DIR": "nuanced report outputs/quickstart",
    "nuanced dashboard DIR": "nuanced dashboard outputs/quickstart --port 6007",
    "nuanced COMMAND --help": "nuanced sweep --help",
    "make package PYTHON=python3.12": "if python3.12 --version; then "
    "make package PYTHON=python3.12; else make package; fi",
    "pytest tests/test_gpu.py": ".venv/bin/python -m pytest -q tests/test_gpu.py",
}
# What a user would have by then.
BEFORE = {
    "nuanced voice me.wav -o my_voice.pt": f'nuanced speak "{_TEXT}" -o me.wav --voice am_puck',
    "nuanced voice a.wav b.mp3 -o me.pt --refine 2 --blend af_heart=0.3": "cp me.wav a.wav && mkdir -p recordings && "
    "cp me.wav recordings && "
    f'nuanced speak "{_TEXT}" -o b.mp3 --voice am_puck --speed 0.9',
    "nuanced speak book.txt -o book.mp3 --voice my_voice.pt": "printf 'One line.\\n\\nAnother line.\\n' > book.txt",
    "nuanced reply in.wav out.wav --llm http://localhost:8080/v1 --model llama3": "cp me.wav in.wav && "
    "cp me.wav clip.wav",
    "nuanced evaluate MODEL --people DIR": "mkdir -p people/anna people/bob && cp me.wav people/anna && "
    "cp b.mp3 people/bob",
}
_SWEEP = "extends: {base}\ntrain: {{epochs: 2, steps_per_epoch: 20}}\nsweep: {{trials: 2}}\n"
_PYTHON = {'"configs/quickstart.yaml"': '"../quickstart.yaml"', 'name="first"': 'name="python"'}
# Commands that run until Ctrl-C, and the port on which each answers. The commands of curl that follow are for it.
_SERVERS = {"nuanced board": 6006, "tensorboard": 6006, "nuanced dashboard": 6007, "nuanced serve": 8880}
_INTERRUPTED = (0, 130, -signal.SIGINT)
_START = 120  # s that a server may take to answer


@dataclass(frozen=True)
class Command:
    """A command of a document, without its comment; ``language`` is that of its block, or "" in a sentence."""

    text: str
    document: str
    language: str = ""


def blocks(document: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code."""
    return _BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def inline(document: str) -> list[str]:
    """The code in sentences, also where it is broken into lines."""
    return [" ".join(code.split()) for code in _in_sentences((ROOT / document).read_text(encoding="utf-8"))]


def _in_sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", _BLOCK.sub("\n\n", text)):
        yield from re.findall(r"`([^`]+)`", paragraph)


def commands(document: str, text: str | None = None) -> list[Command]:
    """The shell commands of a document (or of ``text``), in their order, and its blocks of Python."""
    text = (ROOT / document).read_text(encoding="utf-8") if text is None else text
    found, end = [], 0
    for block in _BLOCK.finditer(text):
        found += _inline_commands(text[end : block.start()], document)
        language, code = block.groups()
        if language == "python":
            found.append(Command(code, document, language))
        for line in code.replace("\\\n", " ").splitlines():
            if language == "sh" or (language == "console" and line.startswith("$ ")):
                command = re.split(r"\s+#\s", line.removeprefix("$ "))[0].strip()
                found += [Command(" ".join(command.split()), document, language)] if command else []
        end = block.end()
    return found + _inline_commands(text[end:], document)


def _inline_commands(text: str, document: str) -> list[Command]:
    lines = [" ".join(code.split()) for code in _in_sentences(text)]
    programs = [Path(line.split()[0]).name if line else "" for line in lines]
    # A name alone, such as make, is a mention.
    return [
        Command(line, document) for line, name in zip(lines, programs, strict=True) if name in PROGRAMS and " " in line
    ]


def to_run() -> list[Command]:
    """What this script runs or lists as not run: each command once, without the examples that the tests run."""
    found = commands("README.md")
    found += [command for command in commands("CONTRIBUTING.md") if command.language == "sh"]
    return list({command.text: command for command in found}.values())


class _Chat(BaseHTTPRequestHandler):
    """A chat endpoint with one answer, in place of a language model."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "It comes back in the evening."}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Session:
    """A user's shell in ``folder``: each command sees the folder and the environment that those before it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, int, float]] = []
        self._state = folder / "state.sh"
        self._state.write_text(f"cd {shlex.quote(str(folder))}\n", encoding="utf-8")
        self._server: tuple[str, subprocess.Popen[bytes], float] | None = None

    def run(self, name: str, command: str) -> None:
        """Run a command and note its exit code; one that serves runs until the next that is not of curl."""
        print(f"$ {command}", flush=True)
        if self._server and not command.startswith("curl"):
            self.stop_server()
        port = next((port for start, port in _SERVERS.items() if command.startswith(start)), None)
        began = time.monotonic()
        # curl reports an answer such as 404 as an error only if it is told to.
        line = command.replace("curl ", "curl --fail-with-body -sS ", 1) if command.startswith("curl ") else command
        keep = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {shlex.quote(str(self._state))}"
        script = f"set -o pipefail; . {shlex.quote(str(self._state))}\n"
        script += f"exec {line}" if port else f"{line}\ncode=$?; {keep}; exit $code"
        process = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, start_new_session=True)
        if port is None:
            self.rows.append((name, process.wait(), time.monotonic() - began))
        else:
            self._server = name, process, began
            _wait_for(f"http://127.0.0.1:{port}/", process)

    def stop_server(self) -> None:
        """Stop the server that runs, if any, by Ctrl-C."""
        if self._server is None:
            return
        name, process, began = self._server
        self._server = None
        answered = process.poll() is None
        if answered:
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
        self.rows.append((name, 0 if answered and code in _INTERRUPTED else code or 1, time.monotonic() - began))


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers; one that does not is ended, which is its failure."""
    end = time.monotonic() + _START
    while process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
            return
        if time.monotonic() > end:
            process.kill()
            process.wait()
        time.sleep(0.5)


def _run_all(folder: Path) -> list[tuple[str, int, float]]:
    chat = ThreadingHTTPServer(("127.0.0.1", 0), _Chat)
    threading.Thread(target=chat.serve_forever, daemon=True).start()
    places = {"{root}": shlex.quote(str(ROOT)), "{chat}": f"http://127.0.0.1:{chat.server_port}/v1"}
    (folder / "quickstart.yaml").write_text(
        _SWEEP.format(base=json.dumps(str(ROOT / "configs/quickstart.yaml"))), encoding="utf-8"
    )
    session = _Session(folder)
    for command in to_run():
        if command.text in NOT_RUN:
            continue
        if command.text in BEFORE:
            session.run(f"({BEFORE[command.text]})", BEFORE[command.text])
        if command.language == "python":
            code = command.text
            for written, used in _PYTHON.items():
                code = code.replace(written, used)
            script = f'if __name__ == "__main__":\n{textwrap.indent(code, "    ")}'
            (folder / "readme.py").write_text(script, encoding="utf-8")
            session.run("the example in Python", "python ../readme.py")
        else:
            line = INSTEAD.get(command.text, command.text)
            for mark, value in places.items():
                line = line.replace(mark, value)
            session.run(command.text, line)
    session.stop_server()
    chat.shutdown()
    return session.rows


def main() -> int:
    """Run the commands and print the table; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="folder to work in; default: a temporary one")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        rows = _run_all(place)
    print("\n| command | exit code | seconds |\n|---|---:|---:|")
    for name, code, seconds in rows:
        print(f"| `{name.replace('|', chr(92) + '|')}` | {code} | {seconds:.1f} |")
    print("\n| not run | reason |\n|---|---|")
    for name, reason in NOT_RUN.items():
        print(f"| `{name}` | {reason} |")
    return int(any(code for _, code, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
