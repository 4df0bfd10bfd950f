"""The manifests of deploy/kuberay."""

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
JOBS = ("train", "tune", "predict")
ALL = (*JOBS, "serve")


def documents(name: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((folder / f"{name}.yaml").read_text("utf-8")))


def manifest(name: str) -> dict[str, Any]:
    """The RayJob or RayService in a file."""
    (found,) = (one for one in documents(name) if one["apiVersion"] == "ray.io/v1")
    return found


def cluster(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return found


def pods(name: str) -> list[dict[str, Any]]:
    """The head's pod spec, then those of the workers."""
    groups = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def sources(pod: dict[str, Any]) -> set[str]:
    """ConfigMaps from which the Ray container of a pod takes its environment."""
    entries = pod["containers"][0]["envFrom"]
    return {entry["configMapRef"]["name"] for entry in entries if "configMapRef" in entry}
