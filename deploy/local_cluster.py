"""Writes cluster-local.yaml: the cluster of cluster.yaml, on your own machines.

    python deploy/local_cluster.py --head 192.168.1.10 --workers 192.168.1.11 192.168.1.12 --user me

Everything that both have in common comes from cluster.yaml, so that it is defined once. Each
machine needs Linux, an SSH server and rsync. `ray up` installs Python and the packages, unless
--environment names an existing environment.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tyro
import yaml

from drone import secret_file
from drone.redaction import redact


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

    share_tracking: bool = False
    """Let other machines reach MLflow on the head, with a password."""

    out: Path = ROOT / "cluster-local.yaml"
    """File to write."""


def local_config(options: Options, aws: dict[str, Any]) -> dict[str, Any]:
    """Returns the cluster configuration for your own machines, derived from the one for AWS."""
    setup = [_shell_line(command, options.environment) for command in aws["setup_commands"]]
    # The address is passed on, as head.sh would take the machine's first one, perhaps of another
    # network.
    head = [
        _shell_line(command, options.head, options.head_cpus)
        for command in aws["head_start_ray_commands"]
    ]
    # Relative paths in the configuration are taken from the folder in which `ray up` runs.
    mounts = {
        target: str(ROOT) if source == "." else source
        for target, source in aws["file_mounts"].items()
    }
    name = f"{aws['cluster_name']}-local"
    key = str(options.key.expanduser().absolute())
    known_hosts = f"~/.drone/known_hosts-{name}"
    return {
        "cluster_name": name,
        "provider": {
            "type": "local",
            "head_ip": options.head,
            "worker_ips": list(options.workers),
            # Not for Ray: head.sh reads these from the copy that `ray up` leaves on the head.
            "storage": options.storage,
            "share_tracking": options.share_tracking,
            "ssh_proxy_command": _proxy_command("~/ray_bootstrap_key.pem", known_hosts),
        },
        "auth": {
            "ssh_user": options.user,
            "ssh_private_key": str(options.key),
            "ssh_proxy_command": _proxy_command(shlex.quote(key), known_hosts),
        },
        "min_workers": len(options.workers),
        "max_workers": len(options.workers),
        "file_mounts": mounts,
        "rsync_exclude": aws["rsync_exclude"],
        "rsync_filter": aws["rsync_filter"],
        "setup_commands": setup,
        "head_start_ray_commands": head,
        "worker_start_ray_commands": aws["worker_start_ray_commands"],
    }


def _shell_line(command: str, *arguments: object) -> str:
    """Returns a command with those of the arguments that are given."""
    given = [shlex.quote(str(argument)) for argument in arguments if argument is not None]
    return " ".join([command, *given])


def _proxy_command(key: str, known_hosts: str) -> str:
    """Returns the command that Ray's own SSH connections go through.

    Ray accepts any host key. Here each of its connections runs inside another one to the same
    machine, which records that machine's key at the first contact and refuses any other later.
    """
    options = {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": known_hosts,
        "HashKnownHosts": "no",
        "ConnectTimeout": "20",
    }
    settings = " ".join(f"-o {name}={value}" for name, value in options.items())
    # With a log, as Ray's connections hide what this command prints. SSH replaces what follows a
    # percent sign.
    return (
        f"ssh -E ~/.drone/ssh.log -i {key.replace('%', '%%')} {settings} -p %p "
        f"-W localhost:%p %r@%h"
    )


def check(options: Options) -> None:
    """Exits with a message if an argument is wrong."""
    if not options.key.expanduser().is_file():
        make = f"ssh-keygen -t ed25519 -f {shlex.quote(str(options.key.expanduser()))}"
        sys.exit(f"error: there is no private key {options.key}; set --key, or make one: {make}")
    if options.head in options.workers or len(set(options.workers)) < len(options.workers):
        sys.exit("error: --head and --workers name a machine twice.")
    for name in (options.user, options.head, *options.workers):
        # SSH would take it for an option.
        if name.startswith("-"):
            sys.exit(f"error: {name} is no user or address of a machine.")
    if redact(options.storage) != options.storage:
        sys.exit(
            f"error: --storage {redact(options.storage)} holds credentials, which would be written "
            f"to {options.out}. Put them where the machines find them, such as ~/.aws/credentials."
        )


def main(options: Options) -> None:
    """Writes the file, and generates the token that authenticates the machines to each other."""
    check(options)
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    content = yaml.safe_dump(local_config(options, aws), sort_keys=False)
    header = "# Written by deploy/local_cluster.py from cluster.yaml.\n"
    options.out.write_text(header + content, "utf-8")
    # cluster.yaml mounts the token on every machine; with RAY_AUTH_MODE=token Ray requires it.
    secret_file.read_or_create(secret_file.RAY_TOKEN.expanduser())
    Path("~/.drone").expanduser().mkdir(exist_ok=True)  # For the known hosts.
    print(f"Wrote {options.out} for a head and {len(options.workers)} workers.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
