"""docs/cluster/rayjob.yaml and its Dockerfile: authentication, resources, the entrypoint, and the image's content."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tune.cluster.shell_commands import FOLDER, ROOT, parse_ray, run_nuanced, trials_per_node, write_script
from tune.cluster.machines import Resources
from tune.trial.resources import with_estimated_memory

CODE = ("nuanced_core", "tune", "configs", "models/default")


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


def test_the_manifests_have_the_versions_of_kuberay_and_ray(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert {kind: manifest["apiVersion"] for kind, manifest in manifests.items()} == {
        "PersistentVolumeClaim": "v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "RayJob": "ray.io/v1",
    }
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={cluster['rayVersion']}\n" in pins
    assert cluster["rayVersion"] == metadata.version("ray")


def test_the_cluster_requires_a_token_and_exposes_no_port(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    selected = policy["podSelector"]["matchLabels"].items()
    for template in templates(manifests):
        assert selected <= template["metadata"]["labels"].items()
        assert not template["spec"].get("hostNetwork")
        for container in template["spec"]["containers"]:
            assert not [port for port in container.get("ports", []) if "hostPort" in port]
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    [allowed] = operator["from"]
    assert allowed["podSelector"]["matchExpressions"][0]["values"] == ["kuberay-operator", "kuberay"]


def test_the_pods_have_the_resources_that_trials_need(manifests: dict[str, Any], cluster: dict[str, Any]) -> None:
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
    config = run_nuanced("sweep", "configs/cluster.yaml", *asked[1].rstrip(";").split()).config
    assert config is not None
    per_node = trials_per_node(config.sweep, float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
    assert config.sweep.max_concurrent == per_node * group["maxReplicas"]
    assert limits["memory"] == "32Gi"  # of which Ray takes 70 % as the node's memory
    assert per_node * with_estimated_memory(config, [Resources(1, 0)]).sweep.memory < 0.7 * 32 * 2**30
    assert cluster["enableInTreeAutoscaling"] is True


def test_ray_accepts_the_start_parameters(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    for group in (head, *cluster["workerGroupSpecs"]):
        given = group["rayStartParams"].items()
        assert all(isinstance(value, str) for _, value in given)
        options = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in given]
        params = parse_ray(["start", "--block", *(["--head"] if group is head else ["--address=a:1"]), *options]).params
        assert params["num_cpus"] == (0 if group is head else None)


@pytest.mark.parametrize("exists", [False, True])
def test_the_entrypoint_starts_or_resumes_the_sweep(manifests: dict[str, Any], exists: bool, tmp_path: Path) -> None:
    """It passes three shells: KubeRay's, that of ``ray job submit``, and that of the job."""
    ray = "import os, shlex, sys; os.execvp('sh', ['sh', '-c', shlex.join(sys.argv[sys.argv.index('--') + 1:])])"
    write_script(tmp_path / "ray", f'exec {sys.executable} -c "{ray}" "$@"')
    write_script(tmp_path / "nuanced", 'printf "%s\\n" "$@"')
    if exists:
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
    assert exists or arguments[1] == "configs/cluster.yaml"
    invocation = run_nuanced(*arguments)
    assert invocation.address == "auto"
    assert invocation.resume == (tmp_path / "outputs" / "first" if exists else None)
    assert invocation.name == (None if exists else "first")
    assert (invocation.config is None) == exists
    if invocation.config is not None:
        assert invocation.config.sweep.outputs == str(tmp_path / "outputs")


def test_the_image_holds_the_project_and_its_pinned_packages() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    [image] = [words[1] for words in lines if words[0] == "FROM"]
    assert re.fullmatch(r"python:3\.1[0-2]-slim", image)
    copied = [word for words in lines if words[0] == "COPY" for word in words[2:-1]]
    assert all((ROOT / path).exists() for path in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", *CODE} == set(copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    installs = [
        part for words in lines if words[0] == "RUN" for part in " ".join(words).split("&&") if "install -" in part
    ]
    pip = [part for part in installs if "pip install" in part]
    assert len(pip) == 1
    assert all("--constraint constraints.txt" in part for part in pip)
    assert ["USER", "nuanced"] in lines
