"""cluster.yaml and what is made of it: against Ray's schema, EC2's, and a make-believe AWS."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.two_hosts.policies import ACCOUNT, BUCKET, REGION, allows, resources, statements_of

pytest.importorskip("moto")


@pytest.fixture
def described() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No request leaves the machine."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        yield


def create_stack() -> None:
    """deploy/aws-base.yaml, with the bucket some-bucket."""
    import boto3

    boto3.client("cloudformation", region_name=REGION).create_stack(
        StackName="drone",
        TemplateBody=(ROOT / "deploy" / "aws-base.yaml").read_text(),
        Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "some-bucket"}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def test_rays_own_schema(described: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(described)))
    described["head_nod_type"] = described.pop("head_node_type")
    with pytest.raises(Exception, match="head_nod_type"):
        validate_config(prepare_config(described))


def test_ec2_knows_every_setting(described: dict) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for name, kind in described["available_node_types"].items():
        asked = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_spot_comes_before_on_demand_and_nothing_runs_without_work(described: dict) -> None:
    kinds = described["available_node_types"]
    spot, demand = kinds["gpu-spot"], kinds["gpu-on-demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in demand["node_config"]
    assert spot["priority"] > demand["priority"]
    assert spot["resources"] == demand["resources"]
    assert spot["min_workers"] == demand["min_workers"] == 0
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "IpPermissions" not in described["provider"]["security_group"]  # SSH is Ray's own.


def test_it_launches_on_a_make_believe_aws(aws: None, described: dict, tmp_path: Path) -> None:
    """The stack is made, the description completed, the head and a GPU machine are started."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    create_stack()
    assert [one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]] == ["some-bucket"]
    ec2 = boto3.client("ec2", region_name=REGION)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for kind in described["available_node_types"].values():
        kind["node_config"]["ImageId"] = image
    described["provider"]["_config_cache_path"] = str(tmp_path)
    described["auth"]["ssh_private_key"] = str(tmp_path / "key.pem")
    ec2.create_key_pair(KeyName="key")
    (tmp_path / "key.pem").touch()
    for kind in described["available_node_types"].values():
        kind["node_config"]["KeyName"] = "key"
    prepared = prepare_config(described)
    validate_config(prepared)
    complete = bootstrap_aws(prepared)
    provider = AWSNodeProvider(complete["provider"], complete["cluster_name"])
    for name, tag in (("head", "head"), ("gpu-spot", "worker")):
        kind = complete["available_node_types"][name]
        tags = {"ray-node-type": tag, "ray-user-node-type": name, "ray-node-name": name}
        provider.create_node(kind["node_config"], tags, 1)
    started = [
        instance
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    ]
    by_type = {instance["InstanceType"]: instance for instance in started}
    assert set(by_type) == {"m7i.xlarge", "g6.2xlarge"}
    profiles = {name: one["IamInstanceProfile"]["Arn"] for name, one in by_type.items()}
    assert profiles["m7i.xlarge"].endswith("drone-head")
    assert profiles["g6.2xlarge"].endswith("drone-worker")
    groups = ec2.describe_security_groups(
        GroupIds=[group["GroupId"] for group in by_type["m7i.xlarge"]["SecurityGroups"]]
    )["SecurityGroups"]
    open_to_all = {
        rule.get("FromPort")
        for group in groups
        for rule in group["IpPermissions"]
        if rule.get("IpRanges")
    }
    assert open_to_all == {22}


def test_the_stack_is_sound_and_no_machine_may_do_everything() -> None:
    template = ROOT / "deploy" / "aws-base.yaml"
    command = [str(Path(sys.executable).with_name("cfn-lint")), str(template)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert '"*:*"' not in template.read_text() and "Action: '*'" not in template.read_text()


@dataclass(frozen=True)
class Stack:
    """What the stack allows: the statements of each role's policies, and of the bucket's."""

    head: list[dict[str, Any]]
    worker: list[dict[str, Any]]
    bucket: list[dict[str, Any]]

    def starts(
        self, instance_type: str = "g6.2xlarge", region: str = REGION, **context: str
    ) -> bool:
        """Whether the head may start an instance as cluster.yaml has it, but for this context."""
        given: dict[str, str | list[str]] = {
            "ec2:InstanceType": instance_type,
            "ec2:MetadataHttpTokens": "required",
            "ec2:InstanceProfile": profile("drone-worker"),
            "aws:RequestTag/ray-cluster-name": "drone",
            **context,
        }
        resource = f"arn:aws:ec2:{region}:{ACCOUNT}:instance/*"
        return allows(self.head, "ec2:RunInstances", resource, given)


def profile(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:instance-profile/{name}"


@pytest.fixture(scope="module")
def stack() -> Stack:
    bucket = resources()["StorePolicy"]["PolicyDocument"]["Statement"]
    return Stack(statements_of("HeadRole"), statements_of("WorkerRole"), bucket)


INSTANCE = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0"
OWN = {"aws:ResourceTag/ray-cluster-name": "drone"}
FOREIGN = {"aws:ResourceTag/ray-cluster-name": "other"}


def test_the_head_starts_only_workers_of_its_own_cluster(stack: Stack) -> None:
    assert stack.starts()
    assert not stack.starts(instance_type="p5.48xlarge")
    assert not stack.starts(region="us-east-1")
    assert not stack.starts(**{"aws:RequestTag/ray-cluster-name": "other"})
    assert not stack.starts(**{"ec2:InstanceProfile": profile("administrator")})
    assert not stack.starts(**{"ec2:MetadataHttpTokens": "optional"})
    image = f"arn:aws:ec2:{REGION}::image/ami-0"
    assert allows(stack.head, "ec2:RunInstances", image, {"ec2:Owner": "amazon"})
    assert not allows(stack.head, "ec2:RunInstances", image, {"ec2:Owner": "999999999999"})
    for kind in ("key-pair", "network-interface", "security-group", "subnet", "volume"):
        resource = f"arn:aws:ec2:{REGION}:{ACCOUNT}:{kind}/x"
        assert allows(stack.head, "ec2:RunInstances", resource, {})
    roles = [f"arn:aws:iam::{ACCOUNT}:role/drone-{name}" for name in ("worker", "head")]
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert [allows(stack.head, "iam:PassRole", role, to_ec2) for role in roles] == [True, False]


def test_the_head_ends_no_machine_that_it_did_not_start(stack: Stack) -> None:
    def tags(context: dict[str, Any]) -> bool:
        return allows(stack.head, "ec2:CreateTags", INSTANCE, context)

    assert allows(stack.head, "ec2:TerminateInstances", INSTANCE, OWN)
    assert not allows(stack.head, "ec2:TerminateInstances", INSTANCE, FOREIGN)
    assert not allows(stack.head, "ec2:TerminateInstances", INSTANCE, {})
    # The tag that lets it: only as a machine starts.
    name = {"aws:RequestTag/ray-cluster-name": "drone", "aws:TagKeys": ["ray-cluster-name"]}
    assert tags({**name, "ec2:CreateAction": "RunInstances"})
    assert not tags(name)
    assert not tags({**name, **FOREIGN})
    assert not tags({**name, **OWN})
    # Ray's notes: on machines of the cluster alone.
    status = {"aws:TagKeys": ["ray-node-status"]}
    assert tags({**status, **OWN})
    assert not tags(status) and not tags({**status, **FOREIGN})
    assert not tags({"aws:TagKeys": ["ray-node-status", "Name"], **OWN})
    assert not tags(OWN)
    for action in ("ec2:DeleteTags", "ec2:StopInstances", "ec2:ModifyInstanceAttribute"):
        assert not allows(stack.head, action, INSTANCE, OWN)


def test_the_bucket_keeps_what_a_machine_deletes_and_workers_stay_out_of_mlflow(
    stack: Stack,
) -> None:
    assert resources()["Store"]["VersioningConfiguration"] == {"Status": "Enabled"}
    for statements in (stack.head, stack.worker):
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert allows(statements, action, f"{BUCKET}/runs/1/state.json", {})
        assert not allows(statements, "s3:DeleteObjectVersion", f"{BUCKET}/runs/1", {})
        assert not allows(statements, "s3:PutBucketVersioning", BUCKET, {})
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        for key in ("mlflow/mlflow.db", "team/mlflow/artifacts/1/MLmodel"):
            assert allows(stack.head, action, f"{BUCKET}/{key}", {})
            assert not allows(stack.worker, action, f"{BUCKET}/{key}", {})
    # Whoever asks: not without encryption on the way.
    everyone = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    for secure in ("true", "false"):
        allowed = allows(
            [*stack.bucket, everyone],
            "s3:GetObject",
            f"{BUCKET}/x",
            {"aws:SecureTransport": secure},
        )
        assert allowed == (secure == "true")


@pytest.fixture
def local(tmp_path: Path) -> dict:
    """The description for two your own machines."""
    (tmp_path / "key").touch()
    args = ["--head", "10.0.0.1", "--workers", "10.0.0.2", "--user", "me"]
    args += ["--key", str(tmp_path / "key"), "--out", str(tmp_path / "local.yaml")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "local_cluster.py"), *args],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o777 == 0o600
    return yaml.safe_load((tmp_path / "local.yaml").read_text())


def test_the_local_cluster_shares_the_settings_of_aws(local: dict, described: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(local)))
    for name in ("setup_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter"):
        assert local[name] == described[name]
    assert local["head_start_ray_commands"] == [
        f"{command} 10.0.0.1" for command in described["head_start_ray_commands"]
    ]
    assert set(local["file_mounts"]) == set(described["file_mounts"])
    assert local["provider"]["worker_ips"] == ["10.0.0.2"]
    # Both the user's machine and the head check host keys.
    for part in ("auth", "provider"):
        command = local[part]["ssh_proxy_command"]
        assert "StrictHostKeyChecking=accept-new" in command
        assert "UserKnownHostsFile=~/.drone/known_hosts-drone-local" in command


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    args = ["--head", "10.0.0.1", "--key", str(tmp_path / "none"), "--out", str(tmp_path / "x")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "local_cluster.py"), *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "there is no private key" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_growing_cluster_has_room_for_what_it_may_get(
    described: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drone.cluster import connection as ray_cluster

    file = tmp_path / "description.yaml"
    file.write_text(json.dumps(described))
    monkeypatch.setattr(ray_cluster, "BOOTSTRAP_CONFIG", file)
    assert ray_cluster._autoscaling_headroom(1) == [{"CPU": 8, "GPU": 1}] * 8
    assert ray_cluster._autoscaling_headroom(7) == [{"CPU": 8, "GPU": 1}] * 2
    file.write_text("provider: {type: local}")
    assert ray_cluster._autoscaling_headroom(1) == []
