"""What infra/ promises: manifests that Kubernetes takes, and nothing that is open, unbounded or run as root."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
KUBERNETES = "1.31"

# Of KubeRay's API reference for ray.io/v1: the fields of its kinds, and what is a pod template in them.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "RayJobSpec": {
        "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "template", "metadata": dict, "clusterSelector": dict, "submitterConfig": dict,
        "managedBy": str, "deletionStrategy": dict, "entrypoint": str, "runtimeEnvYAML": str, "jobId": str,
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), "entrypointResources": str,
        "entrypointNumCpus": float, "entrypointNumGpus": float, "ttlSecondsAfterFinished": int,
        "shutdownAfterJobFinishes": bool, "suspend": bool,
    },
    "RayClusterSpec": {
        "suspend": bool, "managedBy": str, "autoscalerOptions": "AutoscalerOptions", "headServiceAnnotations": dict,
        "enableInTreeAutoscaling": bool, "gcsFaultToleranceOptions": dict, "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str, "workerGroupSpecs": ["WorkerGroupSpec"], "authOptions": "AuthOptions",
    },
    "AuthOptions": {"mode": ("disabled", "token"), "secretName": str, "enableK8sTokenAuth": bool},
    "AutoscalerOptions": {
        "resources": dict, "image": str, "imagePullPolicy": str, "securityContext": dict, "idleTimeoutSeconds": int,
        "upscalingMode": ("Default", "Aggressive", "Conservative"), "version": ("v1", "v2"), "env": list,
        "envFrom": list, "volumeMounts": list,
    },
    "HeadGroupSpec": {
        "template": "template", "headService": dict, "enableIngress": bool, "rayStartParams": {"": str},
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
    },
    "WorkerGroupSpec": {
        "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int,
        "idleTimeoutSeconds": int, "rayStartParams": {"": str}, "template": "template", "scaleStrategy": dict,
        "suspend": bool,
    },
}  # fmt: skip


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((INFRA / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.name} {document['kind']}", document


DOCUMENTS = dict(documents())
RAY = {name: document for name, document in DOCUMENTS.items() if document["apiVersion"] == "ray.io/v1"}


def check(value: Any, kind: Any, place: str) -> Iterator[dict[str, Any]]:
    """Check a value against FIELDS, and yield the pod templates in it."""
    if kind == "template":
        yield value
    elif isinstance(kind, str):
        assert value.keys() <= FIELDS[kind].keys(), f"{place}: no such field {value.keys() - FIELDS[kind].keys()}"
        for name, inner in value.items():
            yield from check(inner, FIELDS[kind][name], f"{place}.{name}")
    elif isinstance(kind, list):
        for number, inner in enumerate(value):
            yield from check(inner, kind[0], f"{place}[{number}]")
    elif isinstance(kind, dict):
        assert all(isinstance(inner, kind[""]) for inner in value.values()), f"{place}: {value}"
    elif isinstance(kind, tuple):
        assert value in kind, f"{place}: {value}"
    else:
        assert isinstance(value, kind), f"{place}: {value}"


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(check(document["spec"], f"{document['kind']}Spec", document["kind"]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kubernetes_takes_every_manifest(name: str) -> None:
    document = DOCUMENTS[name]
    assert document["metadata"]["namespace"] == "stackgan"
    if name not in RAY:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert document["kind"] in ("RayCluster", "RayJob")
    found = templates(document)
    assert len(found) == 2
    for template in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_an_unknown_field_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no such field"):
        list(check({"entrypoint": "x", "autoscaling": True}, "RayJobSpec", "job"))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [], "odd": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY)
def test_ray_pods_are_bounded_watched_and_nobodys_root(name: str) -> None:
    for template in templates(RAY[name]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod["volumes"])
        (container,) = pod["containers"]
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        assert container["readinessProbe"] and container["livenessProbe"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", RAY)
def test_a_ray_cluster_asks_for_a_token_has_no_public_service_and_scales_within_limits(name: str) -> None:
    spec = RAY[name]["spec"].get("rayClusterSpec", RAY[name]["spec"])
    assert spec["authOptions"] == {"mode": "token", "secretName": "stackgan-ray-token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and "enableIngress" not in spec["headGroupSpec"]
    assert spec["enableInTreeAutoscaling"]
    (workers,) = spec["workerGroupSpecs"]
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    pinned = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned and spec["rayVersion"] == pinned[1]


def test_the_job_runs_on_a_cluster_like_the_standing_one() -> None:
    cluster, job = (next(it for it in RAY.values() if it["kind"] == kind)["spec"] for kind in ("RayCluster", "RayJob"))
    assert job["rayClusterSpec"] == cluster
    assert "python -m pipeline.cluster_job " in job["entrypoint"]


def test_rays_pods_are_reached_by_themselves_the_operator_and_a_jobs_submitter_alone() -> None:
    spec = DOCUMENTS["networkpolicy.yaml NetworkPolicy"]["spec"]
    assert spec["podSelector"] == {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule["from"] for rule in spec["ingress"])
    assert not any("ipBlock" in source for rule in spec["ingress"] for source in rule["from"])


def test_compose_publishes_on_loopback_alone_and_holds_no_key() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert {"head", "worker", "mlflow", "database", "store"} <= services.keys()
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not service.get("privileged")
    for name in ("RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        assert f"${{{name}:?}}" in text
        assert re.search(rf"^{name}=$", (INFRA / "example.env").read_text(), re.MULTILINE)
    assert "--allowed-hosts" in services["mlflow"]["command"]


def test_the_image_is_nobodys_root_and_takes_no_data_or_keys_along() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = [line for line in lines if line.startswith("COPY")]
    assert copied == ["COPY --chown=ray requirements.txt ./", "COPY --chown=ray . ."]  # the packages are a layer apart
    assert next(line for line in reversed(lines) if line.startswith("USER ")) == "USER 1000"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".dvc/config.local", "data/*", "runs", "**/*.env"} <= set(ignored)


def test_git_and_so_a_submit_leaves_keys_out() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "infra/.env", "infra/prod.env", ".dvc/config.local", "infra/example.env"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["infra/.env", "infra/prod.env", ".dvc/config.local"]


def test_the_local_clusters_script_is_whole_and_says_how_it_is_used() -> None:
    script = str(INFRA / "local-cluster.sh")
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "infra/local-cluster.sh up" in done.stdout
