"""KubeRay's schemas, as strict as the API server with `--validate=strict`."""

import functools
import gzip
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import SHARED

_PLURALS = {"RayJob": "rayjobs", "RayService": "rayservices"}


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """JSON schema of a kind, in which unknown fields are faults."""
    file = SHARED / "schemas" / f"{_PLURALS[kind]}.yaml.gz"
    if not file.is_file():
        pytest.skip(f"needs KubeRay's custom resource definitions: {file}")
    definition = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return _strict(version["schema"]["openAPIV3Schema"])


def faults(manifest: dict[str, Any]) -> list[str]:
    """What the API server would refuse or drop, as `path: reason`."""
    validator = jsonschema.Draft202012Validator(schema(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def _strict(node: Any) -> Any:
    """Translates Kubernetes' dialect of OpenAPI into JSON schema."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    # The children of `properties` are named by fields, which may be called `type` or `nullable`.
    result = {
        name: {field: _strict(child) for field, child in value.items()}
        if name == "properties"
        else _strict(value)
        for name, value in node.items()
    }
    if result.pop("x-kubernetes-int-or-string", False):
        result.pop("anyOf", None)
        result["type"] = ["integer", "string"]
    if result.pop("nullable", False):
        result["type"] = [result["type"], "null"]
    is_open = result.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in result
    if "properties" in result and not is_open:
        result["additionalProperties"] = False
    return result
