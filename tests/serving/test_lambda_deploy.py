"""The CloudFormation template that osls makes of serverless.yml; only these tests need Node."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.serving.lambda_events import (
    CONTEXT,
    content,
    headers_in,
    rest,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Packages the service with params, in a copy of the project, and returns its resources."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which installs osls")
    root = tmp_path_factory.mktemp("service")
    folder = root / "deploy" / "lambda"
    shutil.copytree(
        ROOT / "deploy/lambda", folder, ignore=shutil.ignore_patterns("node_modules", ".serverless")
    )
    (root / "build" / "lambda").mkdir(parents=True)
    with zipfile.ZipFile(root / "build" / "lambda" / "function.zip", "w") as packed:
        packed.writestr("empty", "")
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"osls cannot be installed: {done.stderr.strip()[-200:]}")

    def package(**params: object) -> dict:
        args = [f"--param={name}={value}" for name, value in params.items()]
        command = [str(folder / "node_modules" / ".bin" / "osls"), "package", *args]
        # Without credentials and network: packaging must need neither.
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        template = folder / ".serverless" / "cloudformation-template-update-stack.json"
        # W3005 is about an alias that osls itself adds.
        lint = [str(Path(sys.executable).with_name("cfn-lint")), str(template), "-i", "W3005"]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(template.read_text())["Resources"]

    return package


def of_type(resources: dict, kind: str) -> list[dict]:
    return [one["Properties"] for one in resources.values() if one["Type"] == f"AWS::{kind}"]


def actions(resources: dict) -> set[str]:
    policies = of_type(resources, "IAM::Role")[0]["Policies"]
    statements = [one for policy in policies for one in policy["PolicyDocument"]["Statement"]]
    assert all(isinstance(one["Action"], list) for one in statements)
    return {action for one in statements for action in one["Action"]}


def test_the_service_with_its_defaults(template: Callable[..., dict]) -> None:
    resources = template()
    function = of_type(resources, "Lambda::Function")[0]
    assert function["Runtime"] == "python3.13" and function["Architectures"] == ["x86_64"]
    assert function["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert (function["MemorySize"], function["Timeout"]) == (1769, 29)
    module, _, name = function["Handler"].rpartition(".")
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() and name == "handler"
    assert function["Environment"]["Variables"] == {"DRONE_ALLOW_ORIGIN": "*"}
    assert of_type(resources, "ApiGateway::RestApi")[0]["BinaryMediaTypes"] == ["*/*"]
    # SnapStart works only on published versions, so the gateway must call one.
    integration = of_type(resources, "ApiGateway::Method")[0]["Integration"]
    assert "snapstart" in json.dumps(integration["Uri"])
    deployment = next(
        one for one in resources.values() if one["Type"].endswith("Gateway::Deployment")
    )
    limits = deployment["Properties"]["StageDescription"]
    assert limits == {"ThrottlingRateLimit": 20, "ThrottlingBurstLimit": 40}
    gateway_responses = [
        n for n, one in resources.items() if one["Type"].endswith("::GatewayResponse")
    ]
    assert set(gateway_responses) <= set(deployment["DependsOn"])
    assert "ReservedConcurrentExecutions" not in function
    assert of_type(resources, "Logs::LogGroup")[0]["RetentionInDays"] == 30
    assert not of_type(resources, "Lambda::Url")
    assert {action.split(":")[0] for action in actions(resources)} == {"logs"}


def test_the_gateways_own_errors_have_the_form_of_the_functions(
    template: Callable[..., dict], function: ModuleType
) -> None:
    responses = of_type(template(origin="https://drone.example.org"), "ApiGateway::GatewayResponse")
    usual = {"REQUEST_TOO_LARGE": 413, "THROTTLED": 429}
    usual |= {"INTEGRATION_FAILURE": 504, "INTEGRATION_TIMEOUT": 504, "WAF_FILTERED": 403}
    by_type = {one["ResponseType"]: one for one in responses}
    assert {"DEFAULT_4XX", "DEFAULT_5XX", "REQUEST_TOO_LARGE", "THROTTLED"} <= set(by_type)
    ours = function.handler(rest("GET", "/nowhere"), CONTEXT)
    for kind, one in by_type.items():
        # As the gateway expands the template: its message has quotation marks.
        text = one["ResponseTemplates"]["application/json"]
        text = text.replace("$context.error.messageString", '"Forbidden"')
        body = json.loads(text.replace("$context.requestId", "r-9"))
        assert "$" not in json.dumps(body)
        assert body.keys() == content(ours).keys() and body["request_id"] == "r-9"
        assert body["error"].keys() == content(ours)["error"].keys() and body["error"]["message"]
        status = body["error"]["status"]
        if kind.startswith("DEFAULT"):
            assert status == int(f"{kind[8]}00") and "StatusCode" not in one
        else:
            assert one["StatusCode"] == str(status) and usual.get(kind, status) == status
        headers = {
            name.rpartition(".")[2]: value for name, value in one["ResponseParameters"].items()
        }
        assert headers.pop("Access-Control-Allow-Origin") == "'https://drone.example.org'"
        assert headers.pop("Retry-After", None) == ("'1'" if status == 429 else None)
        for name, value in headers.items():
            assert value == f"'{headers_in(ours)[name]}'"


def test_the_service_with_a_url_and_a_model_on_s3(template: Callable[..., dict]) -> None:
    resources = template(
        url="true",
        snapStart="false",
        model="s3",
        bucket="models",
        key="drone/model.onnx",
        sha256="0" * 64,
        rate=5,
        concurrency=3,
    )
    # Nothing else limits a function URL.
    assert of_type(resources, "Lambda::Function")[0]["ReservedConcurrentExecutions"] == 3
    assert of_type(resources, "Lambda::Url")[0]["AuthType"] == "NONE"
    assert "SnapStart" not in of_type(resources, "Lambda::Function")[0]
    assert (
        "Cors" not in of_type(resources, "Lambda::Url")[0]
    )  # The function sends these headers; they would be duplicated.
    allowed = {
        one["Action"]
        for one in of_type(resources, "Lambda::Permission")
        if one.get("FunctionUrlAuthType") or one.get("InvokedViaFunctionUrl")
    }
    assert allowed == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}
    variables = of_type(resources, "Lambda::Function")[0]["Environment"]["Variables"]
    assert variables["DRONE_MODEL"] == "s3://models/drone/model.onnx"
    assert variables["DRONE_MODEL_SHA256"] == "0" * 64
    assert "s3:GetObject" in actions(resources)
    assert {action for action in actions(resources) if action.startswith("s3:")} == {"s3:GetObject"}
    assert "arn:${AWS::Partition}:s3:::models/drone/model.onnx" in json.dumps(resources)


def test_the_service_keeps_images_in_a_bucket(template: Callable[..., dict]) -> None:
    resources = template(
        keep="s3", keepBucket="pictures", keepShare=0.2, origin="https://a.example"
    )
    variables = of_type(resources, "Lambda::Function")[0]["Environment"]["Variables"]
    assert variables == {
        "DRONE_ALLOW_ORIGIN": "https://a.example",
        "DRONE_KEEP": "s3://pictures/served",
        "DRONE_KEEP_SHARE": "0.2",
        "DRONE_KEEP_DAYS": "90",
    }
    assert {action for action in actions(resources) if action.startswith("s3:")} == {"s3:PutObject"}
    assert "arn:${AWS::Partition}:s3:::pictures/served/*" in json.dumps(resources)
