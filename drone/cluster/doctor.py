"""Checks every machine of a cluster before a job relies on it: a report per machine, then findings.

The checks that run on each machine are in `drone.cluster.node_report`. This module collects the
reports, adds what only the job's machine can check, and judges them.
"""

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import ray

from drone.cluster import connection
from drone.cluster.node_report import CheckRequest, NodeReport, describe_error, inspect_node
from drone.storage.filesystem import delete_file, read_text
from drone.tracking import probe

# Ray's object store is in /dev/shm; if that is too small, Ray uses the disk, which is slower.
MIN_SHM_GB, MIN_DISK_GB, MAX_CLOCK_OFFSET_S = 1.0, 5.0, 2.0
_TIMEOUT_S = 120.0
_CLOCK_TIMEOUT_S = 20.0

Verdict = Literal["ok", "warning", "failure"]

_FIXES = {
    "answers": "Check the machine: is it up, and is Ray running there (ray status)?",
    "versions": "Install the same requirements.lock everywhere, by the setup_commands of ray up.",
    "torchvision": "Install the versions of requirements.lock: torch and torchvision must match.",
    "code": "Start the job from one copy of the project; ray up copies it to all machines.",
    "precision": "The CPUs differ: set --precision fp32 so that all machines compute the same.",
    "storage": "Set --storage to a location that all machines can write, such as s3://bucket/runs.",
    "tracking": "Is the server up that MLFLOW_TRACKING_URI names? Its log: ~/.drone/tracking.log.",
    "data": "Copy the data set there, or set --data to a location that all machines reach.",
    "weights": "The machine received other bytes than were sent: check its memory and network.",
    "gpu": "Install the driver that this torch needs, or start Ray with --num-gpus=0 there.",
    "shm": "mount -o remount,size=70% /dev/shm, before Ray starts.",
    "disk": "Free some space, or set --activation-cache to another folder.",
    "clock": "Enable time synchronisation (timedatectl set-ntp true).",
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, over all machines with the same outcome."""

    check: str
    verdict: Verdict
    machines: tuple[str, ...]
    message: str
    fix: str = ""


def examine(
    request: CheckRequest, tracking: str, notify: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Checks every machine; Ray and the tracking store must be connected.

    Args:
        request: What the job will use on every machine.
        tracking: URI of the tracking store. Only this machine uses it.
        notify: Called with a message before the checks.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    notify(f"Checking {len(nodes)} machine{'s' if len(nodes) != 1 else ''} ...")
    marker = f".doctor-{uuid.uuid4().hex}"
    ids = [node["NodeID"] for node in nodes]
    # From the object store: the request holds the weights, which are sent once to each machine.
    results = connection.run_on_nodes(
        inspect_node, ids, ray.put(request), marker, timeout_s=_TIMEOUT_S
    )
    reports = [_report_of(node, results[node["NodeID"]]) for node in nodes]
    for report in reports:
        # After the checks: a worker is running there by now, so no start-up delays the reply.
        report.clock_offset_s = _clock_offset_s(report.node)
        _check_marker(request.storage, marker, report)
    return [*judge(reports, request), check_tracking(tracking)]


def check_tracking(uri: str) -> Finding:
    """Returns whether this machine, the only one that logs, can log to the tracking store."""
    here = (socket.gethostname(),)
    if not probe.is_server(uri):
        return Finding("tracking", "ok", here, f"{uri} is a store of this machine")
    try:
        arrived, problem = probe.round_trip(), f"what was sent to {uri} did not arrive"
    except probe.FAILURES as error:
        arrived, problem = False, describe_error(error)
    if arrived:
        return Finding("tracking", "ok", here, f"an artifact came back from {uri}")
    return Finding("tracking", "failure", here, problem, _FIXES["tracking"])


def _report_of(node: dict[str, object], result: object) -> NodeReport:
    report = result
    if not isinstance(report, NodeReport):
        assert isinstance(result, BaseException)
        host = str(node["NodeManagerHostname"])
        report = NodeReport(host, errors={"machine": describe_error(result)})
    report.node = str(node["NodeID"])
    resources = node["Resources"]
    assert isinstance(resources, dict)
    report.ray_gpus = float(resources.get("GPU", 0))
    return report


def _check_marker(storage: str, marker: str, report: NodeReport) -> None:
    """Checks that what a machine wrote is visible here: private storage raises no error there."""
    if "storage" in report.errors or "machine" in report.errors:
        return
    try:
        read_text(f"{storage}/{marker}-{report.node}")
        delete_file(f"{storage}/{marker}-{report.node}")
    except OSError:
        report.errors["storage"] = f"what it writes to {storage} is not visible to this machine"


def _clock_offset_s(node: str) -> float:
    """Returns how far a machine's clock is ahead, accurate to half the time of the request."""
    before = time.time()
    reply = connection.run_on_nodes(_now, [node], timeout_s=_CLOCK_TIMEOUT_S)[node]
    after = time.time()
    # Without a reply the clock is unknown, not wrong; a machine that is silent fails elsewhere.
    return float(reply) - (before + after) / 2 if isinstance(reply, float) else 0.0


def _now() -> float:
    return time.time()


class _Findings:
    """Collects findings; the machines with the same outcome of a check share one."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(
        self, check: str, verdict: Verdict, hosts: Sequence[str], message: str, fix: str = ""
    ) -> None:
        self.all.append(Finding(check, verdict, tuple(hosts), message, _FIXES.get(fix, "")))

    def add_same(
        self, check: str, hosts_by_value: dict[str, list[str]], fix: str, minor: Verdict
    ) -> None:
        """Adds findings for a value that all machines should share; the minority is named."""
        # The majority is right: one stale machine among ten is named, not the other nine.
        majority = max(hosts_by_value, key=lambda value: len(hosts_by_value[value]))
        for value, hosts in hosts_by_value.items():
            if value == majority:
                self.add(check, "ok", hosts, value)
            else:
                self.add(check, minor, hosts, f"{value}, where others have {majority}", fix)

    def add_errors(self, check: str, reports: Sequence[NodeReport], success: str) -> None:
        """Adds a finding for each error of a check, and one for the machines without an error."""
        for report in reports:
            if check in report.errors:
                self.add(check, "failure", [report.host], report.errors[check], check)
        fine = [report.host for report in reports if check not in report.errors]
        if fine:
            self.add(check, "ok", fine, success)


def judge(reports: Sequence[NodeReport], request: CheckRequest) -> list[Finding]:
    """Judges the reports: a finding per check and outcome, with a fix for each problem."""
    findings = _Findings()
    for report in reports:
        if "machine" in report.errors:
            findings.add("answers", "failure", [report.host], report.errors["machine"], "answers")
    # A machine that did not answer has no versions or errors to compare.
    reports = [report for report in reports if "machine" not in report.errors]
    if not reports:
        return findings.all
    findings.add("answers", "ok", [report.host for report in reports], "every check was run")
    _judge_software(findings, reports)
    _judge_access(findings, reports, request)
    for report in reports:
        _judge_gpus(findings, report)
    _judge_capacity(findings, reports)
    return findings.all


def _judge_software(findings: _Findings, reports: Sequence[NodeReport]) -> None:
    for name in reports[0].versions:
        findings.add_same(name, _hosts_by(reports, _version_of(name)), "versions", "failure")
    findings.add_errors("torchvision", reports, "fits torch")
    findings.add_same("code", _hosts_by(reports, lambda r: r.code[:12]), "code", "failure")
    # A warning: mixed CPUs can train, but the result then depends on which of them a run gets.
    precisions = _hosts_by(reports, lambda report: report.precision)
    findings.add_same("precision", precisions, "precision", "warning")


def _version_of(package: str) -> Callable[[NodeReport], str]:
    return lambda report: report.versions.get(package, "missing")


def _hosts_by(
    reports: Sequence[NodeReport], value: Callable[[NodeReport], str]
) -> dict[str, list[str]]:
    hosts: dict[str, list[str]] = {}
    for report in reports:
        hosts.setdefault(value(report), []).append(report.host)
    return hosts


def _judge_access(
    findings: _Findings, reports: Sequence[NodeReport], request: CheckRequest
) -> None:
    findings.add_errors("storage", reports, f"written and read: {request.storage}")
    if request.data is not None:
        success = f"{request.data} is {str(request.fingerprint)[:12]}"
        findings.add_errors("data", reports, success)
    if request.weights is not None:
        sha256 = request.weights.sha256
        for report in reports:
            if report.weights != sha256:
                message = f"other bytes than were sent: SHA-256 {report.weights[:12]}"
                report.errors["weights"] = message
        findings.add_errors("weights", reports, f"SHA-256 {sha256[:12]}")


def _judge_gpus(findings: _Findings, report: NodeReport) -> None:
    # Ray counts GPUs without torch: a driver that this torch cannot use shows only here.
    if report.ray_gpus and len(report.gpus) < report.ray_gpus:
        message = f"Ray counts {report.ray_gpus:g} GPUs, torch sees {len(report.gpus)}"
        findings.add("GPUs", "failure", [report.host], message, "gpu")
    else:
        findings.add("GPUs", "ok", [report.host], ", ".join(report.gpus) or "none")


def _judge_capacity(findings: _Findings, reports: Sequence[NodeReport]) -> None:
    low = {
        "shared memory": [
            (report.host, f"{report.shm_gb:.1f} GB free in /dev/shm", "shm")
            for report in reports
            if report.shm_gb < MIN_SHM_GB
        ],
        "disk": [
            (report.host, f"{report.disk_gb:.1f} GB free for the activation cache", "disk")
            for report in reports
            if report.disk_gb < MIN_DISK_GB
        ],
        "clock": [
            (report.host, f"its clock is {report.clock_offset_s:+.0f} s off", "clock")
            for report in reports
            if abs(report.clock_offset_s) > MAX_CLOCK_OFFSET_S
        ],
    }
    fine = {
        "shared memory": f"{min(report.shm_gb for report in reports):.0f} GB or more",
        "disk": f"{min(report.disk_gb for report in reports):.0f} GB or more",
        "clock": f"within {max(abs(report.clock_offset_s) for report in reports):.1f} s",
    }
    for check, problems in low.items():
        for host, message, fix in problems:
            findings.add(check, "warning", [host], message, fix)
        if not problems:
            findings.add(check, "ok", [report.host for report in reports], fine[check])
