"""A cluster of two hosts, by the commands that a user types, with the faults that clusters have.

The hosts are namespaces on this machine, each with an address, a home, an SSH server and a Ray of
its own. They share no folder. The tests use one cluster, in the order in which they stand here.
"""

import csv
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from drone.data.dataset import Dataset
from drone.errors import ImageError
from tests.conftest import ROOT, MadeUp
from tests.jobs.processes import wait_for
from tests.two_hosts.hosts import Host, hosts, missing

reason = missing()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(reason is not None, reason=f"hosts in namespaces: {reason}"),
]

EPOCHS = 8
QUICK = f"finetune --weights none --batch-size 8 --precision fp32 --epochs {EPOCHS}"
QUICK += " --model.unfreeze-depth 2 --num-workers 2 --data drones"


@dataclass
class Cluster:
    """The two hosts of the cluster and the machine of the user."""

    head: Host
    worker: Host
    client: Host

    def submit(self, job: str, args: str, timeout_s: float = 300, check: bool = True) -> str:
        """As a user does it, from a machine that is not of the cluster."""
        command = f"cd {ROOT}; ray submit ~/cluster-local.yaml ray_jobs/{job}.py -- {args}"
        return " ".join(self.client.run(command, timeout_s, check).split())

    def on_head(self, command: str) -> str:
        """In a login shell of the head, as `ray attach` gives one."""
        return self.head.run(f"source ~/.bashrc; {command}")

    def runs(self) -> dict[str, list[dict]]:
        """All runs of the tracking server by name."""
        output = self.on_head("python app/tests/two_hosts/points.py $MLFLOW_TRACKING_URI")
        return json.loads(output.strip().splitlines()[-1])

    def run(self, name: str) -> dict:
        (run,) = self.runs()[name]
        return run

    def machines(self) -> int:
        """Living machines that Ray counts."""
        counts = self.head.read("machines.log").split()
        return int(counts[-1]) if counts else 0


def trials_are_whole(cluster: Cluster, parent: str, count: int) -> None:
    """Asserts that each trial is there once, over, with each epoch once, and none was lost."""
    trials = [run for same in cluster.runs().values() for run in same if run["parent"] == parent]
    assert len(trials) == count
    assert [run["reason"] for run in trials if run["state"] == "failed"] == []
    # From random weights some answer one class only, which ends them.
    assert {run["state"] for run in trials} <= {"finished", "pruned", "stopped"}
    for run in trials:
        assert run["status"] == ("FAILED" if run["state"] == "stopped" else "FINISHED")
        steps = [step for step, _ in run["points"]["train/loss"]]
        assert steps == list(range(1, len(steps) + 1)) and steps


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Iterator[Cluster]:
    """`ray up` by the commands of docs/cluster.md; the data set lies on the head alone."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(folder, "head", "worker", "client") as made:
        cluster = Cluster(made["head"], made["worker"], made["client"])
        shutil.copytree(dataset.folder, cluster.head.home / "drones")
        cluster.client.run(
            f"python {ROOT}/deploy/local_cluster.py --head {cluster.head.address} --workers "
            f"{cluster.worker.address} --user root --environment {sys.prefix} "
            f"--out ~/cluster-local.yaml"
        )
        up = f"cd {ROOT}; RAY_UP_enable_autoscaler_v2=0 ray up -y ~/cluster-local.yaml"
        cluster.client.run(up)
        count = "source ~/.bashrc; exec python app/tests/two_hosts/machines.py"
        cluster.head.start(count, "machines.log")
        wait_for(lambda: cluster.machines() == 2, 60)
        try:
            yield cluster
        finally:
            shutil.copytree(
                cluster.head.home / ".drone", folder / "left-behind", dirs_exist_ok=True
            )


def test_only_the_head_reaches_mlflow(cluster: Cluster) -> None:
    def is_open(host: Host, address: str) -> bool:
        return host.run(f": < /dev/tcp/{address}/5000 && echo open", check=False).strip() == "open"

    assert is_open(cluster.head, "127.0.0.1")
    assert not is_open(cluster.worker, cluster.head.address)
    assert not is_open(cluster.head, cluster.head.address)
    assert "MLFLOW" not in cluster.worker.read(".drone/node.env")
    for host in (cluster.head, cluster.worker):
        assert host.run("stat -c %a .ray/auth_token").strip() == "600"


def test_a_machine_with_another_host_key_is_refused(cluster: Cluster) -> None:
    known = ".drone/known_hosts-drone-local"
    # The user's machine recorded the head's key, and the head the worker's.
    assert cluster.head.address in cluster.client.read(known)
    assert cluster.worker.address in cluster.head.read(known)
    cluster.client.run(f"cp {known} kept; ssh-keygen -q -t ed25519 -N '' -f other")
    key = cluster.client.read("other.pub").split()[1]
    cluster.client.run(f"echo {cluster.head.address} ssh-ed25519 {key} > {known}")
    cluster.client.run("rm -rf /tmp/ray_ssh_*")  # No connection of before is used again.
    cluster.client.run("ray exec ~/cluster-local.yaml 'touch reached'", check=False)
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in cluster.client.read(".drone/ssh.log")
    assert not (cluster.head.home / "reached").exists()
    cluster.client.run(f"mv kept {known}; ray exec ~/cluster-local.yaml 'touch reached'")
    assert (cluster.head.home / "reached").exists()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict:
    """A run of two workers on two machines."""
    cluster.submit("train", f"{QUICK} --name undisturbed --no-doctor")
    return cluster.run("undisturbed")


def test_the_doctor_finds_both_machines_well(cluster: Cluster) -> None:
    output = cluster.submit("doctor", "--data drones")
    assert "head, worker" in output or "worker, head" in output
    for check in ("torchvision", "code", "storage", "tracking", "data", "clock"):
        assert check in output
    assert "fails" not in output


def test_two_workers_on_two_machines_train_one_model(cluster: Cluster, undisturbed: dict) -> None:
    assert undisturbed["status"] == "FINISHED" and undisturbed["models"] == 1
    assert [step for step, _ in undisturbed["points"]["train/loss"]] == list(range(1, EPOCHS + 1))
    # The other machine took part: it has fetched the data set. It holds no checkpoint.
    assert list((cluster.worker.home / ".cache/drone/datasets").glob("*/dataset.json"))
    assert not (cluster.worker.home / "runs").exists()
    assert list(cluster.head.home.glob(f"runs/{undisturbed['id']}/**/state.json"))


def test_both_machines_predict_the_images_of_one(
    cluster: Cluster, undisturbed: dict, made_up: MadeUp
) -> None:
    shutil.copytree(made_up.folder, cluster.head.home / "photos")
    args = f"--run {undisturbed['id']} --images photos --out answers --ray-from 0"
    output = cluster.submit("predict", args)
    with (cluster.head.home / "answers" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = [path for path in (cluster.head.home / "photos").rglob("*") if path.is_file()]
    # One row a file, whichever machine has predicted it.
    assert len(rows) == len({row["path"] for row in rows}) > 100
    assert len(rows) <= len(files)
    assert {row["reason"] for row in rows} <= {"", *ImageError.REASONS}
    assert sum(row["label"] != "" for row in rows) > 0.8 * len(rows), output


def test_training_begins_with_fewer_workers_and_takes_in_those_that_come(
    cluster: Cluster,
) -> None:
    # Before the runs that lose a machine: Ray may reserve what they had for three more minutes.
    cluster.worker.cut_off()  # Where Ray is only stopped, the head starts it again at once.
    wait_for(lambda: cluster.machines() == 1, 90)
    args = QUICK.replace(f"--epochs {EPOCHS}", "--epochs 5000")
    args = args.replace("--num-workers 2", "--num-workers 4 --min-workers 2")
    command = f"source ~/.bashrc; exec python app/ray_jobs/train.py {args}"
    job = cluster.head.start(f"{command} --name elastic --no-doctor", "elastic.log")

    def log() -> str:
        return cluster.head.read("elastic.log")

    wait_for(lambda: "2 of 4 workers train" in log())
    wait_for(lambda: "epoch   2" in log())
    # Training on would take the processors from all else for a minute.
    cluster.head.run("pkill -STOP -f [R]ayTrainWorker")
    cluster.worker.plug_in()
    wait_for(lambda: cluster.machines() == 2, 120)
    cluster.head.run("pkill -CONT -f [R]ayTrainWorker")
    wait_for(lambda: "4 of 4 workers train" in log(), 200)
    joined = len(re.findall(r"epoch +\d+/", log()))
    wait_for(lambda: len(re.findall(r"epoch +\d+/", log())) > joined + 3)
    cluster.head.run("pkill -TERM -f '[t]rain.py .*--name elastic'")
    assert job.wait(timeout=120) == 130, log()
    elastic = cluster.run("elastic")
    assert elastic["status"] == "KILLED"
    steps = [step for step, _ in elastic["points"]["train/loss"]]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > joined + 3


def test_a_search_over_both_machines_survives_a_cable_that_is_out(cluster: Cluster) -> None:
    wait_for(lambda: cluster.machines() == 2, 120)
    args = "--data drones --weights none --num-trials 8 --epochs 6 --concurrency 4 --name search"
    args += " --vary model.unfreeze_depth=1,2 --confirm 0 0 --no-doctor"
    submit = f"cd {ROOT}; exec ray submit ~/cluster-local.yaml ray_jobs/tune.py -- {args}"
    job = cluster.client.start(submit, "search.log")

    def log() -> str:
        return " ".join(cluster.client.read("search.log").split())

    wait_for(lambda: "(1/8 done" in log())
    cluster.worker.cut_off()
    wait_for(lambda: cluster.machines() == 1, 90)
    cluster.worker.plug_in()
    assert job.wait(timeout=240) == 0, log()
    assert "(8/8 done" in log()
    parent = cluster.run("search")
    assert parent["status"] == "FINISHED" and "study" in parent["files"]
    trials_are_whole(cluster, parent["id"], 8)
    # The winner was evaluated and shown to the gate.
    assert "drone-classifier@champion" in log() or "did not pass the gate" in log()
    assert list(cluster.head.home.glob("studies/search/reports/*/test/report.html"))


def test_training_survives_storage_and_mlflow_that_fail_and_a_cable_that_is_out(
    cluster: Cluster, undisturbed: dict
) -> None:
    # What runs/ holds is on a file system of its own, which can be made to fail.
    cluster.head.run("mkdir -p runs; mount --bind runs runs; mount -t tmpfs tmpfs runs")
    command = f"source ~/.bashrc; exec python app/ray_jobs/train.py {QUICK} --name faults"
    job = cluster.head.start(f"{command} --no-doctor", "faults.log")

    def log() -> str:
        return cluster.head.read("faults.log")

    wait_for(lambda: "This run computes" in log())  # The workers are about to train.
    cluster.head.run("mount -o remount,ro runs")
    wait_for(lambda: "Training waits." in log())
    cluster.head.run("mount -o remount,rw,size=64k runs")  # Now it can be written, but is full.
    time.sleep(6)
    assert "The storage is back" not in log()
    cluster.head.run("mount -o remount,size=200m runs")
    wait_for(lambda: "The storage is back" in log())
    # While the other machine is away and comes back, which takes more than a minute, nobody
    # answers for MLflow either.
    cluster.head.run("pkill -STOP -f '[t]racking.py|[m]lflow'")
    cluster.worker.cut_off()
    wait_for(lambda: cluster.machines() == 1, 90)
    cluster.worker.plug_in()
    wait_for(lambda: cluster.machines() == 2, 120)
    cluster.head.run("pkill -CONT -f '[t]racking.py|[m]lflow'")
    assert job.wait(timeout=240) == 0, log()
    faults = cluster.run("faults")
    assert faults["status"] == "FINISHED"
    assert faults["points"] == undisturbed["points"]


def test_no_run_is_left_running_and_the_cluster_goes_down(cluster: Cluster) -> None:
    running = [
        name for name, same in cluster.runs().items() for run in same if run["status"] == "RUNNING"
    ]
    assert running == []
    cluster.client.run(f"cd {ROOT}; ray down -y ~/cluster-local.yaml")
    assert "raylet" not in cluster.head.run("ps ax")
