"""Damaged files for everything that reads files: each is read, or refused in one line by an error of this project.

``python -m tests.fuzz [TARGET…] [--count 10000] [--seed 0] [--keep FOLDER]`` damages small valid files at random and
reads them. A failure is another exception, a message of several lines, more than 5 s, or more memory than
three times the file and 300 MB. A file that ends the process is in ``FOLDER/TARGET/now``, others that fail beside it.
"""

import argparse
import faulthandler
import logging
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from nuanced_core.errors import NuancedError
from tests.fuzz_targets import TARGETS, Target

__all__ = ["Failure", "Summary", "damaged", "fuzz", "problem_of"]

SECONDS = 5.0  # for one input
SPARE_BYTES = 300 << 20  # that a reader may take beside three times its file
# Bytes beside what is mapped at the start: a larger allocation fails instead of taking the machine.
ADDRESS_SPACE = 6 << 30
INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
TOKENS = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b"[]",
    b"{}",
    b'""',
    b"\n",
    b"\0",
    b"\xff",
    b"\xc3",
)
TOKENS += (
    b"[" * 3_000,
    b"../" * 50,
    b'"\\ud800"',
    b"9" * 5_000,
    b"\x1b[2J",
    b"&a",
    b"*a",
    b"!!",
    b"- ",
    b": ",
    b"/",
    b".",
)
VALUE = re.compile(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,80}"|null|true|false')  # of JSON and YAML
VALUES = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1.5",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b"[]",
    b"{}",
    b"[[1]]",
    b'{"a": 1}',
    b'""',
)
VALUES += (b'"a"', b'"\\ud800"', b'"\\n"', b"9" * 5_000, b"1000000", b"[" * 3_000 + b"]" * 3_000)


class TimeoutFailure(BaseException):
    """An input that took too long; no ``except Exception`` catches it."""


@dataclass(frozen=True)
class Failure:
    """An input that is neither read nor refused as it should be."""

    data: bytes
    problem: str


@dataclass
class Summary:
    """What the inputs of one target led to."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0  # seconds
    memory: int = 0  # bytes, the largest growth of the process by one input
    failures: list[Failure] = field(default_factory=list)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return a copy of ``data`` with one to four random changes, half of them in its first 256 bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        end = min(256, len(changed)) if draw.random() < 0.5 else len(changed)
        at = draw.randrange(end + 1) if end else 0
        length = min(draw.choice((1, 2, 4, 8, 30, 200)), len(changed) - at)
        kind = draw.randrange(10)
        if kind == 0 and length:
            changed[draw.randrange(at, at + length)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = draw.randbytes(1)
        elif kind == 2:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(INTEGERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))  # type: ignore[arg-type]
        elif kind == 3 and draw.random() < 0.5:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * draw.choice((1, 1, 2, 50))
        elif kind == 6:
            other = draw.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
        elif kind > 7 and (value := VALUE.search(changed, at, at + 2_000)):
            changed[value.start() : value.end()] = draw.choice(VALUES)
        else:
            changed[at : at + draw.choice((0, 1, length))] = draw.choice(TOKENS)
    return bytes(changed)


def problem_of(target: Target, file: Path, size: int) -> tuple[str | None, bool, int]:
    """Read a file; return what is wrong with how it was read, whether it was accepted, and the growth in bytes."""
    before = _peak_memory(reset=True)
    previous, (left, _) = signal.signal(signal.SIGALRM, _stop), signal.getitimer(signal.ITIMER_REAL)  # of pytest
    problem, accepted = None, False
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.read(file)
        accepted = True
    except NuancedError as error:
        if len(str(error).splitlines()) != 1:
            problem = f"the message has not one line: {str(error)!r}"
    except TimeoutFailure:
        problem = f"takes more than {SECONDS:g} s, in:\n{traceback.format_exc()}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:300] + "\n" + traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, left)
    growth = _peak_memory() - before
    if problem is None and growth > 3 * size + SPARE_BYTES:
        problem = f"takes {growth >> 20} MiB for a file of {size} bytes"
    return problem, accepted, growth


def fuzz(target: Target, folder: Path, count: int, seed: int, *, progress: TextIO | None = None) -> Summary:
    """Read ``count`` damaged files of a target one after the other, at a path in ``folder``; the same for a seed."""
    summary, started, said = Summary(), time.monotonic(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    originals = target.originals(folder)
    for original in originals:
        target.read(_placed(target, folder, target.wrap(original)))  # a valid file must be accepted
    for number in range(count):
        draw = random.Random(f"{target.name} {seed} {number}")
        data = target.wrap(damaged(draw.choice(originals), draw))
        file = _placed(target, folder, data)
        begun = time.monotonic()
        # For C code that the alarm does not interrupt.
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=progress or sys.stderr)
        problem, accepted, growth = problem_of(target, file, len(data))
        faulthandler.cancel_dump_traceback_later()
        summary.inputs += 1
        summary.slowest = max(summary.slowest, time.monotonic() - begun)
        summary.memory = max(summary.memory, growth)
        if problem is not None:
            summary.failures.append(Failure(data, problem))
        elif accepted:
            summary.accepted += 1
        else:
            summary.refused += 1
        if progress is not None and time.monotonic() - said > 1:
            said = time.monotonic()
            print(
                f"\r{target.name}: {number + 1} of {count}, {said - started:.0f} s", end="", file=progress, flush=True
            )
    if progress is not None:
        print("\r" + " " * 60 + "\r", end="", file=progress, flush=True)
    return summary


def _placed(target: Target, folder: Path, data: bytes) -> Path:
    file = folder / "now" / target.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _stop(signum: int, frame: object) -> None:
    raise TimeoutFailure


def _peak_memory(*, reset: bool = False) -> int:
    """Return the largest resident memory in bytes, since the last reset where the kernel allows resetting it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        with Path("/proc/self/status").open() as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _keep(failures: list[Failure], folder: Path, suffix: str) -> None:
    """Write the failing inputs, at most five of each kind, each with what is wrong with it."""
    kinds: dict[str, int] = {}
    for number, failure in enumerate(failures):
        frames = re.findall(r'(?:nuanced_core|tune)/\S+\.py", line \d+, in \w+', failure.problem)
        kind = f"{failure.problem.splitlines()[0][:110]} | {frames[-1] if frames else ''}"
        kind = re.sub(r"(?<!line )\b\d+\b|'[^']*'", "…", kind)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= 5:
            (folder / f"{number}{suffix}").write_bytes(failure.data)
            (folder / f"{number}.txt").write_text(failure.problem, errors="replace")
    for kind, times in kinds.items():
        print(f"    {times} × {kind}")


def _limit_address_space() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    """Fuzz the targets that the command line names, or all; print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for failing inputs; a temporary one by default")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    shown = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libmpg123 writes lines about damage there
    faulthandler.enable(shown)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _limit_address_space()
    keep = given.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    print("| target | inputs | refused | accepted | slowest, s | memory, MB | failed |\n|---" + "|---:" * 6 + "|")
    failed = 0
    for name in given.targets or TARGETS:
        found = fuzz(TARGETS[name], keep / name, given.count, given.seed, progress=shown)
        counts = f"{found.inputs} | {found.refused} | {found.accepted}"
        print(
            f"| {name} | {counts} | {found.slowest:.2f} | {found.memory / 1e6:.0f} | {len(found.failures)} |",
            flush=True,
        )
        _keep(found.failures, keep / name, Path(TARGETS[name].file).suffix)
        failed += len(found.failures)
    if failed:
        print(f"{failed} inputs failed; they are in {keep}", file=shown)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
