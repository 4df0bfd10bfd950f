"""Prints what head.sh reads from the cluster's description, as shell variables.

    python settings.py ~/ray_bootstrap_config.yaml

Also completes that description. Ray leaves the command that checks host keys out of the head's
copy (deploy/local_cluster.py), and the head starts Ray on the workers by SSH.
"""

import json
import shlex
import sys
from pathlib import Path

import yaml

NAMES = ("storage", "region", "share_tracking")


def main(file: Path) -> None:
    """Reads and completes the description."""
    description = yaml.safe_load(file.read_text("utf-8"))
    provider = description["provider"]
    if command := provider.get("ssh_proxy_command"):
        description["auth"]["ssh_proxy_command"] = command
        file.write_text(json.dumps(description), "utf-8")
    for name in NAMES:
        print(f"{name}={shlex.quote(str(provider.get(name, '')))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
