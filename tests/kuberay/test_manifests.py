"""The manifests are what KubeRay, the jobs and cluster.yaml expect. No cluster is reached."""

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config, node_provider
from ray.serve.schema import ServeDeploySchema

from drone.cluster import connection
from drone.config import override
from drone.workflows.serving import ServiceArgs, build_application
from tests.conftest import ROOT
from tests.jobs.test_command_line import parsed
from tests.kuberay import crds
from tests.kuberay.manifests import ALL, FOLDER, JOBS, cluster, documents, manifest, pods, sources

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES = CLUSTER["available_node_types"]


@pytest.mark.parametrize("name", ALL)
def test_kuberay_accepts_each_field(name: str) -> None:
    assert crds.faults(manifest(name)) == []


def _group(spec: dict[str, Any]) -> dict[str, Any]:
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert isinstance(group, dict)
    return group


def _container(spec: dict[str, Any]) -> dict[str, Any]:
    (container,) = _group(spec)["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


BREAK: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown": (lambda spec: spec.update(ttlSeconds=5), "ttlSeconds"),
    "unknown in a group": (lambda spec: _group(spec).update(maxReplica=8), "maxReplica"),
    "unknown in a pod": (
        lambda spec: _group(spec)["template"]["spec"].update(nodeSelectors={}),
        "nodeSelectors",
    ),
    "number": (lambda spec: _group(spec).update(maxReplicas="8"), "'8' is not of type 'integer'"),
    "missing": (lambda spec: _group(spec).pop("groupName"), "'groupName' is a required"),
    "missing in a pod": (lambda spec: _container(spec).pop("name"), "'name' is a required"),
    "choice": (
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        "'tokens' is not one of",
    ),
    "quantity": (
        lambda spec: _container(spec)["resources"]["limits"].update(memory="26 GiB"),
        "'26 GiB' does not match",
    ),
    "text": (
        lambda spec: _group(spec)["rayStartParams"].update({"num-cpus": 8}),
        "8 is not of type 'string'",
    ),
}


@pytest.mark.parametrize("fault", BREAK)
def test_a_broken_manifest_is_refused(fault: str) -> None:
    broken = copy.deepcopy(manifest("train"))
    damage, message = BREAK[fault]
    damage(broken["spec"])
    (found,) = crds.faults(broken)
    assert message in found


def test_quantities_may_be_numbers() -> None:
    numbers = copy.deepcopy(manifest("train"))
    _container(numbers["spec"])["resources"]["requests"]["cpu"] = 7
    assert crds.faults(numbers) == []


@pytest.mark.parametrize("name", ALL)
def test_ray_is_the_one_of_the_image(name: str) -> None:
    pinned = re.search(r"^ray\[.*\]==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned and cluster(name)["rayVersion"] == pinned[1]
    images = {pod["containers"][0]["image"] for pod in pods(name)}
    assert images == {"YOUR-IMAGE"}


@pytest.mark.parametrize("name", JOBS)
def test_the_entrypoint_is_a_command_of_the_job(name: str) -> None:
    entrypoint = manifest(name)["spec"]["entrypoint"]
    # A shell of the submitting pod reads it, and then one of the head.
    assert re.fullmatch(r"[\w./:@ -]+", entrypoint)
    python, script, *args = shlex.split(entrypoint)
    assert (python, script) == ("python", f"ray_jobs/{name}.py")
    assert parsed(script, args)


@pytest.mark.parametrize("name", JOBS)
def test_machines_and_numbers_are_those_of_the_cluster_on_aws(name: str) -> None:
    # Read by the autoscaler of the pinned Ray, as in the head's pod.
    ray_cluster = {"metadata": {"namespace": "x", "name": "y"}, "spec": cluster(name)}
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(ray_cluster)
    head, (group,) = (
        config["available_node_types"].pop(config["head_node_type"]),
        config["available_node_types"].values(),
    )
    on_aws = TYPES["gpu-spot"]
    assert head["resources"]["CPU"] == TYPES["head"]["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] == CLUSTER["idle_timeout_minutes"]
    assert (group["min_workers"], group["max_workers"]) == (0, CLUSTER["max_workers"])
    assert group["resources"]["CPU"] == on_aws["resources"]["CPU"]
    gpus = 0 if name == "predict" else on_aws["resources"]["GPU"]
    assert group["resources"].get("GPU", 0) == gpus
    head_pod, worker_pod = pods(name)
    instance = "node.kubernetes.io/instance-type"
    assert head_pod["nodeSelector"][instance] == TYPES["head"]["node_config"]["InstanceType"]
    if gpus:
        assert worker_pod["nodeSelector"][instance] == on_aws["node_config"]["InstanceType"]
    (spot,) = _capacity(worker_pod, "preferred")
    assert (spot["operator"], spot["values"]) == ("In", ["spot"])
    (stable,) = _capacity(head_pod, "required")
    assert (stable["operator"], stable["values"]) == ("NotIn", ["spot"])


def _capacity(pod: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    rules = pod["affinity"]["nodeAffinity"][f"{kind}DuringSchedulingIgnoredDuringExecution"]
    terms = (
        [rule["preference"] for rule in rules]
        if kind == "preferred"
        else rules["nodeSelectorTerms"]
    )
    expressions = [expression for term in terms for expression in term["matchExpressions"]]
    return [one for one in expressions if one["key"] == "karpenter.sh/capacity-type"]


def test_training_and_search_run_on_equal_clusters() -> None:
    train, tune = (copy.deepcopy(cluster(name)) for name in ("train", "tune"))
    for one in (train, tune):
        template = one["headGroupSpec"]["template"]
        template.pop("metadata")
        template["spec"].pop("volumes", None)
        template["spec"]["containers"][0].pop("volumeMounts", None)
    assert train == tune


def test_jobs_count_the_machines_that_kuberay_may_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = tmp_path / "namespace"
    namespace.write_text("default")
    asked: list[str] = []
    spec = copy.deepcopy(cluster("train"))

    def get(self: node_provider.KubernetesHttpApiClient, path: str) -> dict[str, Any]:
        asked.append(f"{self._namespace}/{path}")
        return {"metadata": {"namespace": "default", "name": "drone-train-x"}, "spec": spec}

    monkeypatch.setenv("RAY_CLUSTER_NAME", "drone-train-x")
    monkeypatch.setattr(connection, "KUBERNETES_NAMESPACE", namespace)
    # Kubernetes is the cloud here.
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", get)
    machines = connection._autoscaling_headroom(1)
    assert [(one["CPU"], one["GPU"]) for one in machines] == [(8, 1)] * 8
    assert len(connection._autoscaling_headroom(7)) == 2
    assert set(asked) == {"default/rayclusters/drone-train-x"}
    spec["enableInTreeAutoscaling"] = False
    assert connection._autoscaling_headroom(1) == []
    namespace.unlink()
    assert connection._autoscaling_headroom(1) == []


def _settings() -> dict[str, dict[str, str]]:
    maps = [one for one in documents("settings") if one["kind"] == "ConfigMap"]
    return {one["metadata"]["name"]: one["data"] for one in maps}


def test_settings_are_those_that_the_code_reads() -> None:
    settings = _settings()
    code = "".join(file.read_text() for name in ("drone", "ray_jobs") for file in _python(name))
    for variable in settings["drone-job"]:
        assert f'environ.get("{variable}")' in code
    nodes = dict(settings["drone-nodes"])
    assert nodes.pop("AWS_DEFAULT_REGION") == CLUSTER["provider"]["region"]
    on_aws = (ROOT / "deploy" / "node" / "env.sh").read_text()
    assert nodes and all(f"{name}={value}" in on_aws for name, value in nodes.items())
    assert settings["drone-job"]["DRONE_STORAGE"] == CLUSTER["provider"]["storage"]
    assert all(isinstance(value, str) for data in settings.values() for value in data.values())


def _python(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", ALL)
def test_pods_get_the_settings_that_they_need_and_no_others(name: str) -> None:
    head, *workers = pods(name)
    accounts = [one for one in documents("settings") if one["kind"] == "ServiceAccount"]
    known = {one["metadata"]["name"] for one in accounts}
    assert sources(head) == set(_settings())
    for worker in workers:
        # As on AWS, no worker of a job has an address of MLflow.
        needed = {"drone-nodes"} if name in JOBS else set(_settings())
        assert sources(worker) == needed
    for pod in (head, *workers):
        assert pod["serviceAccountName"] in known
        assert pod["securityContext"]["runAsNonRoot"] is True
        container = pod["containers"][0]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        secrets = [one["secretRef"] for one in container["envFrom"] if "secretRef" in one]
        assert all(secret["optional"] for secret in secrets)


@pytest.mark.parametrize("name", ["tune", "predict"])
def test_results_that_are_no_uri_are_on_a_volume(name: str) -> None:
    head, *_ = pods(name)
    (volume,) = head["volumes"]
    claims = [one for one in documents(name) if one["kind"] == "PersistentVolumeClaim"]
    assert [one["metadata"]["name"] for one in claims] == [
        volume["persistentVolumeClaim"]["claimName"]
    ]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert f" {mount['mountPath']}/" in manifest(name)["spec"]["entrypoint"]


def test_the_service_is_one_that_ray_serve_and_the_code_accept() -> None:
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(manifest("serve")["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    module, name = str(application.import_path).split(":")
    assert (module, name) == (build_application.__module__, build_application.__name__)
    assert config.http_options.port in {
        port["containerPort"] for pod in pods("serve") for port in pod["containers"][0]["ports"]
    }
    replicas = override(ServiceArgs(), application.args, "test").replicas
    (group,) = cluster("serve")["workerGroupSpecs"]
    cpus = int(group["rayStartParams"]["num-cpus"])
    per_machine = cpus // (replicas.replica_cpus or 1)
    assert replicas.min_replicas <= per_machine * group["minReplicas"]
    assert replicas.max_replicas == per_machine * group["maxReplicas"]


def test_the_documented_commands_leave_nothing_to_fill_in(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    target = tmp_path / "deploy" / "kuberay"
    shutil.copytree(FOLDER, target)
    (command,) = re.findall(r"^    (sed (?:.*\\\n)*.*)$", text, re.MULTILINE)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    for file in target.glob("*.yaml"):
        assert "YOUR-" not in file.read_text()
    assert json.loads(json.dumps(documents("settings", target)))[0]["data"] == {
        "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
        "DRONE_STORAGE": "s3://the-name-you-chose",
    }
    for name in re.findall(r"deploy/kuberay/(\w+\.yaml)", text):
        assert (FOLDER / name).is_file()
