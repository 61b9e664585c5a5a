"""docker/kuberay/ held against what can be known without a cluster: names of fields, what must stay shut and secret."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps import lease, run

ROOT = Path(__file__).resolve().parents[1]
KUBERAY = ROOT / "docker" / "kuberay"
FIELDS = {
    "RayJobSpec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata rayClusterSpec runtimeEnvYAML "
    "shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished",
    "RayClusterSpec": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend workerGroupSpecs",
    "HeadGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "WorkerGroupSpec": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams replicas "
    "resources scaleStrategy suspend template",
}
"""Names of ray.io/v1 in KubeRay 1.5.1, which refuses others."""


def documents(name: str) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all((KUBERAY / name).read_text(encoding="utf-8")) if tree]


ALL = [tree for path in sorted(KUBERAY.glob("*.yaml")) for tree in documents(path.name)]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    [found] = [tree for tree in documents("rayjob.yaml") if tree["kind"] == "RayJob"]
    assert found["apiVersion"] == "ray.io/v1"
    spec: dict[str, Any] = found["spec"]
    return spec


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod template) of everything that runs."""
    for tree in ALL:
        if tree["kind"] == "RayJob":
            for group in groups(tree["spec"]):
                yield group.get("groupName", "head"), group["template"]
        elif tree["kind"] in ("Deployment", "StatefulSet"):
            yield tree["metadata"]["name"], tree["spec"]["template"]


def test_the_fields_are_those_of_the_operator(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    held = {"RayJobSpec": [job], "RayClusterSpec": [cluster], "HeadGroupSpec": [cluster["headGroupSpec"]]}
    for kind, trees in {**held, "WorkerGroupSpec": cluster["workerGroupSpecs"]}.items():
        for tree in trees:
            assert set(tree) <= set(FIELDS[kind].split()), kind
    assert all(isinstance(value, str) for group in groups(job) for value in group["rayStartParams"].values())


def test_the_cluster_is_the_one_that_the_docs_describe(job: dict[str, Any]) -> None:
    head, *workers = groups(job)
    assert head["rayStartParams"]["num-cpus"] == "0", "trials would run on the head"
    for worker in workers:
        [container] = worker["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
        assert worker["minReplicas"] >= 1, "no node could serve a trial, and the launch would be refused"
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in groups(job):
        assert "/dev/shm" in [
            mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
        ]
    assert job["rayClusterSpec"]["rayVersion"] == metadata.version("ray")


def test_the_job_can_be_repeated_and_stopped(job: dict[str, Any]) -> None:
    """A new cluster runs the same command; what it goes on from must outlive the old one."""
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["python", "-m", "sweeps.run"]
    arguments = run._parser().parse_args(words[3:])
    assert arguments.address == "auto"
    assert arguments.storage.startswith("s3://")
    assert 60 * arguments.wait_minutes > lease.EXPIRY_S, "each refusal would cost a retry"
    assert job["backoffLimit"] > 0
    assert (ROOT / arguments.space.relative_to("/app")).exists()
    stopped = yaml.safe_load((ROOT / "docker" / "job.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(job["runtimeEnvYAML"]) == stopped
    [mlflow] = [tree for tree in ALL if tree["kind"] == "Service" and tree["metadata"]["name"] == "mlflow"]
    assert arguments.tracking_uri == f"http://mlflow:{mlflow['spec']['ports'][0]['port']}"


def test_ray_asks_for_a_token(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["authOptions"]["mode"] == "token"
    text = (KUBERAY / "rayjob.yaml").read_text(encoding="utf-8")
    assert "RAY_AUTH" not in text, "the operator sets it, from the secret that it makes"


def test_nothing_is_exposed(job: dict[str, Any]) -> None:
    head = job["rayClusterSpec"]["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    assert {tree["kind"] for tree in ALL}.isdisjoint({"Ingress", "HTTPRoute", "Route"})
    assert all(tree["spec"]["type"] == "ClusterIP" for tree in ALL if tree["kind"] == "Service")
    guarded = [tree["spec"] for tree in ALL if tree["kind"] == "NetworkPolicy"]
    for name, pod in pods():
        mine = [
            spec for spec in guarded if spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        assert mine, f"{name}: no NetworkPolicy is for it."
        for spec in mine:
            assert "Ingress" in spec["policyTypes"]
            assert all(rule.get("from") for rule in spec["ingress"]), f"{name}: a rule lets everybody in."


def test_no_container_may_more_than_it_needs() -> None:
    names = [name for name, _ in pods()]
    assert sorted(names) == ["gpu", "head", "mlflow", "postgres"]
    for name, pod in pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


def test_secrets_come_from_secrets() -> None:
    assert [tree for tree in ALL if tree["kind"] == "Secret"] == []
    for name, pod in pods():
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"]):
                    assert variable["value"].startswith("/run/secrets/"), f"{name}: {variable['name']}"
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claimed = {"data"} if name == "postgres" else set()
            assert mounted <= volumes | claimed, f"{name}: mounts what is no volume."
    text = "".join(path.read_text(encoding="utf-8") for path in KUBERAY.glob("*.yaml"))
    assert re.findall(r"://[^/\s]*:[^/\s@]*@", text) == [], "an address with a password"


def test_services_find_their_pods() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods()]
    for tree in ALL:
        if tree["kind"] == "Service":
            assert any(tree["spec"]["selector"].items() <= found.items() for found in labels), tree["metadata"]["name"]
        if tree["kind"] in ("Deployment", "StatefulSet"):
            own = tree["spec"]["template"]["metadata"]["labels"]
            assert tree["spec"]["selector"]["matchLabels"].items() <= own.items()


def test_one_mlflow_everywhere() -> None:
    """The server is started as compose starts it, but for its hosts."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]["mlflow"]
    [server] = [tree for tree in ALL if tree["kind"] == "Deployment"]
    mine = shlex.split(server["spec"]["template"]["spec"]["containers"][0]["command"][-1])
    theirs = shlex.split(compose["command"][-1])
    assert (
        mine[mine.index("mlflow") : mine.index("--allowed-hosts")]
        == (theirs[theirs.index("mlflow") : theirs.index("--allowed-hosts")])
    )
    assert {"mlflow:5000", "localhost:5000"} <= set(mine[-1].split(","))


def test_the_image_has_what_the_operators_probes_call() -> None:
    assert " wget " in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
