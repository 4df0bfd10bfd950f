"""Writes cluster-local.yaml: the cluster of cluster.yaml, on your own machines.

    python deploy/local_cluster.py --head 192.168.1.10 --workers 192.168.1.11 192.168.1.12 --user me

Everything that both have in common comes from cluster.yaml, so that it is defined once. Each
machine needs Linux, an SSH server and rsync. `ray up` installs Python and the packages, unless
--environment names an existing environment.
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
class Options:
    """Arguments."""

    head: str
    """Address of the head, which you and the workers reach by SSH; it also runs the jobs."""

    workers: tuple[str, ...] = ()
    """Addresses of the workers."""

    user: str = os.environ.get("USER", "root")
    """User to log in as, on all machines."""

    key: Path = Path("~/.ssh/id_ed25519")
    """Private SSH key of that user."""

    storage: str = ""
    """Folder or URI that all machines share (default: none; files are transferred by the head)."""

    environment: Path | None = None
    """Existing Python environment with the project's requirements, at this path on all machines."""

    head_cpus: int | None = None
    """CPUs of the head to use for training, 0 for none (default: all)."""

    out: Path = ROOT / "cluster-local.yaml"
    """File to write."""


def local_config(options: Options, aws: dict[str, Any]) -> dict[str, Any]:
    """Returns the cluster configuration for your own machines, derived from the one for AWS."""
    setup = [f"{command}{_argument(options.environment)}" for command in aws["setup_commands"]]
    cpus = "" if options.head_cpus is None else f" {options.head_cpus}"
    # The address is passed on, as head.sh would take the machine's first one, perhaps of another
    # network.
    head = [f"{command} {options.head}{cpus}" for command in aws["head_start_ray_commands"]]
    # Relative paths in the configuration are taken from the folder in which `ray up` runs.
    mounts = {
        target: str(ROOT) if source == "." else source
        for target, source in aws["file_mounts"].items()
    }
    return {
        "cluster_name": f"{aws['cluster_name']}-local",
        "provider": {
            "type": "local",
            "head_ip": options.head,
            "worker_ips": list(options.workers),
            # Not for Ray: head.sh reads it from the copy that `ray up` leaves on the head.
            "storage": options.storage,
        },
        "auth": {"ssh_user": options.user, "ssh_private_key": str(options.key)},
        "min_workers": len(options.workers),
        "max_workers": len(options.workers),
        "file_mounts": mounts,
        "rsync_exclude": aws["rsync_exclude"],
        "rsync_filter": aws["rsync_filter"],
        "setup_commands": setup,
        "head_start_ray_commands": head,
        "worker_start_ray_commands": aws["worker_start_ray_commands"],
    }


def _argument(environment: Path | None) -> str:
    return f" {environment}" if environment else ""


def main(options: Options) -> None:
    """Writes the file, and generates the token that authenticates the machines to each other."""
    if not options.key.expanduser().is_file():
        sys.exit(f"error: there is no private key {options.key}; set --key.")
    if options.head in options.workers or len(set(options.workers)) < len(options.workers):
        sys.exit("error: --head and --workers name a machine twice.")
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    content = yaml.safe_dump(local_config(options, aws), sort_keys=False)
    header = "# Written by deploy/local_cluster.py from cluster.yaml.\n"
    options.out.write_text(header + content, "utf-8")
    # cluster.yaml mounts the token on every machine; with RAY_AUTH_MODE=token Ray requires it.
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "get-auth-token", "--generate"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"Wrote {options.out} for a head and {len(options.workers)} workers.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
