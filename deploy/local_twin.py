"""Writes cluster-local.yaml: the cluster of cluster.yaml on machines of your own.

    python deploy/local_twin.py --head 192.168.1.10 --workers 192.168.1.11 192.168.1.12 --user me

What the two have in common is taken from cluster.yaml, so there is one place to change it. Each
machine needs Linux, an SSH server and rsync; Python and the packages are installed by `ray up`,
unless --environment names one that is there.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Arguments."""

    head: str
    """Address of the machine that the others and you reach by SSH; it also runs the jobs."""

    workers: tuple[str, ...] = ()
    """Addresses of the others."""

    user: str = os.environ.get("USER", "root")
    """Who logs in, on all of them."""

    key: Path = Path("~/.ssh/id_ed25519")
    """Private key for that."""

    storage: str = ""
    """Folder or URI that all machines share; without one, files go through the head."""

    environment: Path | None = None
    """Python environment with the project's requirements that is on all machines already."""

    head_cpus: int | None = None
    """Processor cores of the head for training; by default all, 0 for none."""

    out: Path = ROOT / "cluster-local.yaml"
    """The file to write."""


def twin(wanted: Twin, aws: dict[str, Any]) -> dict[str, Any]:
    """The description for machines of one's own, of the one for AWS."""
    setup = [f"{command}{_argument(wanted.environment)}" for command in aws["setup_commands"]]
    cpus = "" if wanted.head_cpus is None else f" {wanted.head_cpus}"
    head = [f"{command} {wanted.head}{cpus}" for command in aws["head_start_ray_commands"]]
    # Paths in the description are taken from the folder in which `ray up` runs.
    mounts = {
        target: str(ROOT) if source == "." else source
        for target, source in aws["file_mounts"].items()
    }
    return {
        "cluster_name": f"{aws['cluster_name']}-local",
        "provider": {
            "type": "local",
            "head_ip": wanted.head,
            "worker_ips": list(wanted.workers),
            "storage": wanted.storage,
        },
        "auth": {"ssh_user": wanted.user, "ssh_private_key": str(wanted.key)},
        "min_workers": len(wanted.workers),
        "max_workers": len(wanted.workers),
        "file_mounts": mounts,
        "rsync_exclude": aws["rsync_exclude"],
        "rsync_filter": aws["rsync_filter"],
        "setup_commands": setup,
        "head_start_ray_commands": head,
        "worker_start_ray_commands": aws["worker_start_ray_commands"],
    }


def _argument(environment: Path | None) -> str:
    return f" {environment}" if environment else ""


def main(wanted: Twin) -> None:
    """Writes the file, and the token that its machines know each other by."""
    if not wanted.key.expanduser().is_file():
        sys.exit(f"error: there is no private key {wanted.key}; name yours with --key.")
    if wanted.head in wanted.workers or len(set(wanted.workers)) < len(wanted.workers):
        sys.exit("error: --head and --workers name a machine twice.")
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    content = yaml.safe_dump(twin(wanted, aws), sort_keys=False)
    wanted.out.write_text(f"# Made by deploy/local_twin.py from cluster.yaml.\n{content}", "utf-8")
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "get-auth-token", "--generate"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    print(f"{wanted.out} is for 1 + {len(wanted.workers)} machines.")


if __name__ == "__main__":
    main(tyro.cli(Twin, description=__doc__))
