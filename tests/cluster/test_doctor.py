"""The doctor's verdicts on the reports of machines."""

from dataclasses import replace

import pytest

from drone.cluster.doctor import Finding, judge
from drone.cluster.node_report import CheckRequest, NodeReport
from drone.model.weights import Weights

WEIGHTS = Weights(pretrained="imagenet", data=b"weights")
REQUEST = CheckRequest(
    storage="s3://bucket/runs",
    data="s3://bucket/drones",
    fingerprint="f" * 64,
    weights=WEIGHTS,
)


def machine(host: str, **changes: object) -> NodeReport:
    report = NodeReport(
        host,
        versions={"Python": "3.11.7", "torch": "2.15.0"},
        code="c" * 64,
        shm_gb=8,
        disk_gb=100,
        precision="bfloat16",
        weights=WEIGHTS.sha256,
    )
    return replace(report, **changes)


def problems(*reports: NodeReport) -> list[Finding]:
    return [finding for finding in judge(reports, REQUEST) if finding.verdict != "ok"]


def test_healthy_machines() -> None:
    findings = judge([machine("a"), machine("b")], REQUEST)
    assert all(finding.verdict == "ok" and not finding.fix for finding in findings)
    checks = {finding.check for finding in findings}
    assert {"torch", "torchvision", "code", "precision", "storage"} <= checks
    assert {"data", "weights", "GPUs", "shared memory", "disk", "clock", "answers"} <= checks


@pytest.mark.parametrize(
    ("check", "verdict", "message", "broken"),
    [
        (
            "torch",
            "failure",
            "2.11.0, where others have 2.15.0",
            machine("b", versions={"Python": "3.11.7", "torch": "2.11.0"}),
        ),
        ("code", "failure", "dddddddddddd, where", machine("b", code="d" * 64)),
        ("precision", "warning", "float32, where", machine("b", precision="float32")),
        ("weights", "failure", "other bytes than were sent", machine("b", weights="0" * 64)),
        ("GPUs", "failure", "Ray counts 2 GPUs, torch sees 0", machine("b", ray_gpus=2.0)),
        ("shared memory", "warning", "0.1 GB free", machine("b", shm_gb=0.06)),
        ("disk", "warning", "0.5 GB free", machine("b", disk_gb=0.5)),
        ("clock", "warning", "-7 s off", machine("b", clock_offset_s=-7.0)),
        ("storage", "failure", "is not seen", machine("b", errors={"storage": "is not seen"})),
        ("data", "failure", "no such place", machine("b", errors={"data": "no such place"})),
        ("torchvision", "failure", "nms", machine("b", errors={"torchvision": "no nms"})),
        ("answers", "failure", "lost", machine("b", errors={"machine": "lost"})),
    ],
)
def test_a_problem_is_named_with_its_machine_and_a_fix(
    check: str, verdict: str, message: str, broken: NodeReport
) -> None:
    findings = problems(machine("a"), broken, machine("c"))
    assert len(findings) == 1
    assert (findings[0].check, findings[0].verdict) == (check, verdict)
    assert findings[0].machines == ("b",)
    assert message in findings[0].message
    assert findings[0].fix


def test_a_cluster_in_which_no_machine_answers() -> None:
    silent = machine("a", errors={"machine": "no answer"})
    assert [finding.check for finding in problems(silent)] == ["answers"]
