"""Reads and evaluates the policies of deploy/aws-base.yaml; moto's fake AWS leaves some out and
allows all.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import yaml

from tests.conftest import ROOT

REGION, ACCOUNT = "eu-west-1", "123456789012"
BUCKET = "arn:aws:s3:::some-bucket"
_VALUES: dict[str, Any] = {
    "Bucket": "some-bucket",
    "Cluster": "drone",
    "InstanceTypes": ["g6.2xlarge"],
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "Store": "some-bucket",
    "Store.Arn": BUCKET,
    "WorkerRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/drone-worker",
    "WorkerProfile.Arn": f"arn:aws:iam::{ACCOUNT}:instance-profile/drone-worker",
}
"""What CloudFormation's functions give: parameters, and attributes of resources."""


class _Loader(yaml.SafeLoader):
    """Reads a template with its functions Ref, GetAtt and Sub evaluated."""


def _evaluate(_: yaml.SafeLoader, function: str, node: yaml.ScalarNode) -> Any:
    if function == "Sub":
        return re.sub(r"\$\{([^}]+)\}", lambda match: _VALUES[match[1]], node.value)
    # What else is named, by !Ref, is another resource of the template.
    return _VALUES.get(node.value, node.value)


_Loader.add_multi_constructor("!", _evaluate)


def resources() -> dict[str, Any]:
    """The stack's resources, by their names in the template."""
    template = yaml.load((ROOT / "deploy" / "aws-base.yaml").read_text(), _Loader)
    return {name: entry["Properties"] for name, entry in template["Resources"].items()}


def statements_of(role: str) -> list[dict[str, Any]]:
    """The statements of all policies that a role has."""
    found = resources()
    documents = [policy["PolicyDocument"] for policy in found[role]["Policies"]]
    documents += [found[name]["PolicyDocument"] for name in found[role]["ManagedPolicyArns"]]
    return [statement for document in documents for statement in document["Statement"]]


Context = Mapping[str, str | list[str]]
"""Condition keys of a request and their values."""


def allows(
    statements: Iterable[Mapping[str, Any]], action: str, resource: str, context: Context
) -> bool:
    """Whether a request passes: a statement allows it, and none denies it."""
    applying = [
        statement["Effect"]
        for statement in statements
        if _matches(action, statement["Action"])
        and _matches(resource, statement["Resource"])
        and _conditions_hold(statement.get("Condition", {}), context)
    ]
    return "Allow" in applying and "Deny" not in applying


def _matches(value: str, patterns: str | list[str]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in _listed(patterns))


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _conditions_hold(conditions: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    return all(
        _OPERATORS[operator](_listed(context.get(key, [])), _listed(allowed))
        for operator, keys in conditions.items()
        for key, allowed in keys.items()
    )


def _any_equal(given: list[str], allowed: list[str]) -> bool:
    return any(value in allowed for value in given)


_OPERATORS: dict[str, Callable[[list[str], list[str]], bool]] = {
    "StringEquals": _any_equal,
    "ArnEquals": _any_equal,
    "Bool": _any_equal,
    "ForAllValues:StringEquals": lambda given, allowed: all(value in allowed for value in given),
    "Null": lambda given, allowed: allowed == [str(not given).lower()],
}
