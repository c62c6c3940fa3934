"""docs/CLUSTER.md and the files that it names: each is read by what would read it, as far as that needs no cluster."""

import argparse
import copy
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from tune.cli.app import _parser, _sweep_overrides
from tune.config.sweep_config import SweepConfig, load_sweep
from tune.config.sweep_settings import SweepSettings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "cluster"
GUIDE = ROOT / "docs" / "CLUSTER.md"
FILES = [GUIDE, *sorted(FOLDER.iterdir())]


# What is written in the files


def shell_lines(text: str) -> list[str]:
    """The lines in a Markdown text's fences, continued ones joined, and the code within its sentences."""
    fences = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*fences.replace("\\\n", " ").splitlines(), *inline]


def commands(line: str, tool: str) -> Iterator[list[str]]:
    """The arguments of each call of ``tool`` in a shell line, also of those within its quotes."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an apostrophe of a sentence
        return
    found: list[str] | None = None
    for word in words:
        if found is None and word.rpartition("/")[2] == tool:
            found = []
        elif found is not None and re.fullmatch(r"[;&|<>()]+", word):
            yield found
            found = None
        elif found is not None:
            found.append(word)
        if " " in word:
            yield from commands(word, tool)
    if found is not None:
        yield found


def in_guide(tool: str) -> list[list[str]]:
    text = GUIDE.read_text(encoding="utf-8")
    return [call for line in shell_lines(text) for call in commands(line, tool) if call]


def parse_nuanced(arguments: list[str]) -> argparse.Namespace:
    """By the real parser; the settings of a sweep that it names are read too."""
    try:
        parsed = _parser().parse_args(arguments)
    except SystemExit:
        raise ValueError(f"nuanced {shlex.join(arguments)}") from None
    if arguments[0] == "sweep" and parsed.config is not None:
        load_sweep(ROOT / parsed.config, _sweep_overrides(parsed))
    return parsed


def parse_ray(arguments: list[str]) -> click.Context:
    """By Ray's own definitions; nothing is started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import cli

    command: click.Command = cli.commands[arguments[0]]
    return command.make_context(arguments[0], arguments[1:])


def searched(config: str, *arguments: str) -> SweepConfig:
    parsed = _parser().parse_args(["sweep", config, *arguments])
    return load_sweep(ROOT / config, _sweep_overrides(parsed))


def trials_on(sweep: SweepSettings, cpus: float, gpus: float) -> int:
    return int(min(cpus // sweep.cpus_per_trial, gpus // sweep.gpus_per_trial))


@pytest.mark.parametrize("wrong", ["sweep a.yaml --adress auto", "sweeep a.yaml"])
def test_a_misspelt_command_is_told(wrong: str) -> None:
    assert list(commands(f"cd x && .venv/bin/nuanced {wrong} | tee a", "nuanced")) == [wrong.split()]
    assert list(commands(f"ray exec a.yaml 'cd x && nuanced {wrong}'", "nuanced")) == [wrong.split()]
    with pytest.raises(ValueError, match="nuanced swee"):
        parse_nuanced(wrong.split())
    with pytest.raises(click.NoSuchOption):
        parse_ray(["start", "--haed"])


def test_the_guide_s_commands_are_taken_by_nuanced() -> None:
    found = in_guide("nuanced")
    assert {call[0] for call in found} == {"sweep", "doctor"}
    assert sum("--address" in call for call in found) >= 5
    for call in found:
        parse_nuanced(call)


def test_the_guide_s_commands_are_taken_by_ray() -> None:
    found = in_guide("ray")
    assert {"start", "up", "exec", "down", "status", "stop"} - {call[0] for call in found} == {"stop"}
    for call in found:
        parse_ray(call)
    heads = [call for call in found if "--head" in call]
    assert heads
    assert all("--dashboard-host=127.0.0.1" in call for call in heads)


def test_every_setting_that_is_named_is_one() -> None:
    names = set()
    for file in FILES:
        names |= set(re.findall(r"\bsweep\.([a-z_]+)\b", file.read_text(encoding="utf-8").replace("sweep.yaml", "")))
    assert {"shared", "max_concurrent", "max_failures", "storage"} <= names
    assert names <= set(SweepSettings.model_fields)


def test_the_guide_names_every_file_and_no_other() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    named = {(GUIDE.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", text)}
    named |= {ROOT / path for path in re.findall(r"\b(?:docs|configs|tests)/[\w./-]+\.\w+", text)}
    assert all(path.is_file() for path in named), [path for path in named if not path.is_file()]
    assert set(FOLDER.iterdir()) <= named


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_secret_and_no_path_of_one_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.findall(r"\b[0-9a-f]{32,}\b", text)


# Ray's cluster launcher


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return prepared(yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text(encoding="utf-8")))


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As ``ray up`` prepares it before it talks to the provider; refused as there."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def starts(lines: list[str]) -> list[tuple[str, click.Context]]:
    """The lines that start Ray, and how Ray reads them."""
    return [(line, parse_ray(call)) for line in lines for call in commands(line, "ray") if call and call[0] == "start"]


def test_ray_accepts_the_launcher_s_file_and_would_refuse_another(launcher: dict[str, Any]) -> None:
    assert launcher["provider"]["type"] == "aws"
    for spoilt in ({**launcher, "max_workrs": 1}, {**launcher, "setup_commands": [{"a": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            prepared(spoilt)
    with pytest.raises(ValueError, match="head_node_type"):
        prepared({**launcher, "head_node_type": "none"})


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_launcher_starts_the_project_s_ray_with_a_token(launcher: dict[str, Any], role: str) -> None:
    lines = launcher[f"{role}_start_ray_commands"]
    [(line, context)] = starts(lines)
    assert re.search(r"RAY_AUTH_MODE=token \.venv/bin/ray start", line)
    if role == "head":
        assert context.params["dashboard_host"] == "127.0.0.1"
        assert context.params["num_cpus"] == 0
        assert context.params["autoscaling_config"]
    else:
        assert context.params["address"] == "$RAY_HEAD_IP:6379"
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_the_launcher_s_workers_hold_what_the_guide_asks_for(launcher: dict[str, Any]) -> None:
    head, worker = launcher["available_node_types"]["head"], launcher["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert 1 <= worker["min_workers"] <= worker["max_workers"] <= launcher["max_workers"]
    [asked] = [call for call in in_guide("nuanced") if "~/shared/outputs" in call]
    sweep = searched(asked[1], *asked[2:]).sweep
    each = trials_on(sweep, worker["resources"]["CPU"], worker["resources"]["GPU"])
    assert sweep.max_concurrent == each * worker["max_workers"]


def test_the_launcher_s_nodes_get_the_commit_and_a_token_of_their_own(launcher: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    for remote in launcher["file_mounts"]:
        copied = home / Path(remote).relative_to("/home/ubuntu")
        if copied.suffix == ".bundle":
            identity = ["-c", "user.name=a", "-c", "user.email=a"]
            subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
            (tmp_path / "repo" / "Makefile").write_text("setup:\n")
            for command in (["add", "."], ["commit", "-qm", "a"], ["bundle", "create", "-q", copied, "HEAD"]):
                subprocess.run(["git", *identity, *command], cwd=tmp_path / "repo", check=True)
        else:
            copied.write_text("token")
            copied.chmod(0o644)
    for line in launcher["setup_commands"]:
        if not line.startswith("sudo ") and "pip install" not in line:
            for _ in range(2):  # `ray up` runs them again on nodes that are there
                subprocess.run(["bash", "-ec", line], env={**os.environ, "HOME": str(home)}, check=True)
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert (home / "nuanced-speech" / "Makefile").is_file()


# KubeRay


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    found = list(yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text(encoding="utf-8")))
    return {manifest["kind"]: manifest for manifest in found}


@pytest.fixture(scope="module")
def cluster(manifests: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifests["RayJob"]["spec"]["rayClusterSpec"]
    return found


def templates(manifests: dict[str, Any]) -> list[dict[str, Any]]:
    job = manifests["RayJob"]["spec"]
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    return [*(group["template"] for group in groups), job["submitterPodTemplate"]]


def test_the_rayjob_is_of_the_kinds_that_kuberay_knows(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert {kind: manifest["apiVersion"] for kind, manifest in manifests.items()} == {
        "PersistentVolumeClaim": "v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "RayJob": "ray.io/v1",
    }
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={cluster['rayVersion']}\n" in pins
    assert cluster["rayVersion"] == metadata.version("ray")


def test_the_rayjob_asks_for_a_token_and_opens_no_port(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    chosen = policy["podSelector"]["matchLabels"].items()
    for template in templates(manifests):
        assert chosen <= template["metadata"]["labels"].items()
        assert not template["spec"].get("hostNetwork")
        for container in template["spec"]["containers"]:
            assert not [port for port in container.get("ports", []) if "hostPort" in port]
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    [admitted] = operator["from"]
    assert admitted["podSelector"]["matchExpressions"][0]["values"] == ["kuberay-operator", "kuberay"]


def test_the_rayjob_s_pods_have_what_trials_need(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
    claim = manifests["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in templates(manifests):
        [container] = template["spec"]["containers"]
        assert container["image"] == "nuanced-speech:latest"
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert {"cpu", "memory"} <= limits.keys() & requests.keys()
        if template is not templates(manifests)[-1]:
            [volume], [mount] = template["spec"]["volumes"], container["volumeMounts"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert mount == {"name": volume["name"], "mountPath": "/shared"}
            assert {"name": "NUANCED_CACHE", "value": "/shared/cache"} in container["env"]
    [group] = cluster["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    asked = re.search(r"configs/cluster\.yaml .*?(--set \S+)", manifests["RayJob"]["spec"]["entrypoint"])
    assert asked
    sweep = searched("configs/cluster.yaml", *asked[1].rstrip(";").split()).sweep
    each = trials_on(sweep, float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
    assert sweep.max_concurrent == each * group["maxReplicas"]
    assert cluster["enableInTreeAutoscaling"] is True


def test_the_rayjob_s_ray_takes_its_options(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    for group in (head, *cluster["workerGroupSpecs"]):
        given = group["rayStartParams"].items()
        assert all(isinstance(value, str) for _, value in given)
        options = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in given]
        params = parse_ray(["start", "--block", *(["--head"] if group is head else ["--address=a:1"]), *options]).params
        assert params["num_cpus"] == (0 if group is head else None)


@pytest.mark.parametrize("there", [False, True])
def test_the_rayjob_begins_a_sweep_or_goes_on_with_it(manifests: dict[str, Any], there: bool, tmp_path: Path) -> None:
    """Through the shells that it passes: KubeRay's, that of ``ray job submit``, and that of the job."""
    ray = "import os, shlex, sys; os.execvp('sh', ['sh', '-c', shlex.join(sys.argv[sys.argv.index('--') + 1:])])"
    stub(tmp_path / "ray", f'exec {sys.executable} -c "{ray}" "$@"')
    stub(tmp_path / "nuanced", 'printf "%s\\n" "$@"')
    if there:
        (tmp_path / "outputs" / "first").mkdir(parents=True)
        (tmp_path / "outputs" / "first" / "sweep.yaml").touch()
    entrypoint = manifests["RayJob"]["spec"]["entrypoint"].strip().replace("/shared", str(tmp_path))
    done = subprocess.run(
        ["bash", "-ce", f"ray job submit --address a -- {entrypoint} ;"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = [word.replace("/app/", "") for word in done.stdout.splitlines()]
    parsed = parse_nuanced(arguments)
    assert parsed.address == "auto"
    assert parsed.resume == (tmp_path / "outputs" / "first" if there else None)
    assert parsed.config == (None if there else Path("configs/cluster.yaml"))


def test_the_image_holds_what_the_project_s_packages_are() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    [image] = [words[1] for words in lines if words[0] == "FROM"]
    assert re.fullmatch(r"python:3\.1[0-2]-slim", image)
    copied = [word for words in lines if words[0] == "COPY" for word in words[2:-1]]
    assert all((ROOT / path).exists() for path in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "nuanced_core", "tune", "configs"} == set(
        copied
    )
    installs = [
        part for words in lines if words[0] == "RUN" for part in " ".join(words).split("&&") if "install -" in part
    ]
    pip = [part for part in installs if "pip install" in part]
    assert len(pip) == 2
    assert all("--constraint constraints.txt" in part for part in pip)
    assert ["USER", "nuanced"] in lines


# Slurm


def stub(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    file.chmod(0o755)


class Job:
    """The script on nodes that are pretended: each step is a process here, and each command writes what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.started: list[subprocess.Popen[str]] = []
        stubs = folder / "bin"
        stubs.mkdir()
        sleep = "/bin/sleep" if Path("/bin/sleep").exists() else "/usr/bin/sleep"
        seen = (
            'echo "${SLURMD_NODENAME:--} $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $RAY_AUTH_MODE ${0##*/} $*"'
            f" >> {self.log}"
        )
        stub(stubs / "sleep", f"exec {sleep} 0.05")
        stub(stubs / "scontrol", f'echo "- - - scontrol $*" >> {self.log}; [ "$1" != show ] || printf "%s\\n" one two')
        stub(
            stubs / "srun",
            "while [[ $1 == --* ]]; do [[ $1 != --nodelist=* ]] || export SLURMD_NODENAME=${1#*=}; shift; done\n"
            'export SLURM_CPUS_ON_NODE=8; exec "$@"',
        )
        stub(
            stubs / "ray",
            f"node={folder}/node-$SLURMD_NODENAME\n"
            f'[ "$1" = status ] || {seen}\n'
            'case "$1" in\n'
            f"status) ls {folder} | sed -n 's/^node-/ 1 node_/p';;\n"
            f'start) [ "$SLURMD_NODENAME" != "$LATE" ] || exit 0; echo $$ > "$node"; exec {sleep} 60;;\n'
            'stop) if [ -f "$node" ]; then kill "$(cat "$node")"; rm "$node"; fi;;\n'
            "esac",
        )
        stub(
            stubs / "nuanced",
            f"{seen}\ntrap 'rm -f {folder}/driver' EXIT\n"
            f"trap 'echo \"- - - SIGINT\" >> {self.log}; exit 130' INT\n"
            f'echo $$ > {folder}/driver\nwhile [ -n "$ENDLESS" ]; do {sleep} 0.05; done',
        )
        self.environment = {
            **os.environ,
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "BIN": str(stubs),
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_SUBMIT_DIR": str(folder),
        }

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["bash", str(FOLDER / "slurm.sh"), "configs/cluster.yaml", "first"],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """What a test that failed has left."""
        for process in self.started:
            process.kill()
        for file in (*self.folder.glob("node-*"), *self.folder.glob("driver")):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def end(self, process: "subprocess.Popen[str]") -> str:
        told, _ = process.communicate(timeout=30)
        assert not list(self.folder.glob("node-*")), "Ray was not stopped on all nodes"
        assert not list(self.folder.glob(".ray-*")), "the token is left"
        return told

    def said(self) -> list[list[str]]:
        """Node, mode of the token's file, RAY_AUTH_MODE, and what was called with what."""
        return [line.split() for line in self.log.read_text().splitlines()]

    def calls(self) -> list[str]:
        return [" ".join(line[3:5]) for line in self.said()]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.kill()


def test_slurm_starts_ray_sweeps_and_stops_it(job: Job) -> None:
    process = job.start(RAY_AUTH_TOKEN="another")
    told = job.end(process)
    assert process.returncode == 0, told
    calls = job.calls()
    assert calls[:4] == ["scontrol show", "ray start", "ray start", "nuanced sweep"]
    assert sorted(calls[4:]) == ["ray stop", "ray stop"]
    _, head, worker, sweep, *stops = job.said()
    assert (head[0], worker[0], {line[0] for line in stops}) == ("one", "two", {"one", "two"})
    for line in (head, worker, sweep):
        assert line[1:3] == ["600", "token"]
    params = parse_ray(head[4:]).params
    assert (params["head"], params["dashboard_host"], params["num_cpus"]) == (True, "127.0.0.1", 8)
    address = f"one:{params['port']}"
    assert parse_ray(worker[4:]).params["address"] == address
    assert params["block"]
    parsed = parse_nuanced(sweep[4:])
    assert (parsed.name, parsed.outputs, parsed.address) == ("first", "outputs", address)


def test_slurm_goes_on_with_a_sweep_that_is_there(job: Job) -> None:
    (job.folder / "outputs" / "first").mkdir(parents=True)
    (job.folder / "outputs" / "first" / "sweep.yaml").touch()
    job.end(job.start())
    [sweep] = [line for line in job.said() if line[3] == "nuanced"]
    parsed = parse_nuanced(sweep[4:])
    assert (parsed.resume, parsed.config) == (Path("outputs/first"), None)


@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_slurm_s_signal_lets_the_sweep_checkpoint(job: Job, number: signal.Signals, again: bool) -> None:
    process = job.start(ENDLESS="1")
    deadline = time.monotonic() + 20
    while not (job.folder / "driver").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)  # as with --signal=B: to the script alone
    told = job.end(process)
    assert process.returncode == 130, told
    calls = job.calls()
    assert calls[calls.index("nuanced sweep") + 1 :][:1] == ["SIGINT"]
    assert calls.count("ray stop") == 2
    assert calls[-1] == ("scontrol requeue" if again else "ray stop")


def test_slurm_gives_up_on_a_node_that_does_not_join(job: Job) -> None:
    process = job.start(LATE="two", JOIN_SECONDS="3")
    told = job.end(process)
    assert process.returncode == 1
    assert re.search(r"after \d+ s 1 of 2 nodes have joined", told)
    assert "nuanced sweep" not in job.calls()


def test_slurm_s_options_are_those_that_the_script_relies_on() -> None:
    text = (FOLDER / "slurm.sh").read_text(encoding="utf-8")
    head = text[: text.index("\nset -euo pipefail")]
    assert all(line.startswith("#") for line in head.splitlines())  # sbatch reads no option behind a command
    options = re.findall(r"^#SBATCH (\S+)$", head, re.MULTILINE)
    assert {"--requeue", "--signal=B:INT@120", "--exclusive", "--no-kill", "--open-mode=append"} <= set(options)
