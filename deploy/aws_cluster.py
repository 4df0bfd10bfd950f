"""Checks cluster.yaml before `ray up`, and generates the token of the cluster.

    python deploy/aws_cluster.py [cluster.yaml]

`make cluster-aws` runs it. What it refuses would fail minutes later on AWS, or run machines of
images that nobody chose.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml

from drone import secret_file

_IMAGE_ID = re.compile(r"ami-[0-9a-f]{8,17}")


def problems(description: dict[str, Any]) -> Iterator[str]:
    """Yields what has to be set before the cluster can start."""
    if "YOUR-BUCKET" in description["provider"].get("storage", ""):
        yield "provider.storage is s3://YOUR-BUCKET; name the bucket of the stack."
    for name, kind in description["available_node_types"].items():
        image = kind["node_config"].get("ImageId")
        if not _IMAGE_ID.fullmatch(str(image)):
            yield (
                f"ImageId of {name} is {image}; it must be the id of an image (ami-...), which the "
                f"command in the comment above it finds."
            )


def main(file: Path) -> None:
    """Exits with 1 if the description is not ready."""
    try:
        found = list(problems(yaml.safe_load(file.read_text("utf-8"))))
    except OSError as error:
        found = [f"it cannot be read: {error.strerror}"]
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        found = [f"it describes no cluster ({type(error).__name__}: {error})"]
    for problem in found:
        print(f"error: {file}: {problem}", file=sys.stderr)
    if found:
        sys.exit(1)
    # cluster.yaml mounts the token on every machine; with RAY_AUTH_MODE=token Ray requires it.
    secret_file.read_or_create(secret_file.RAY_TOKEN.expanduser())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "cluster.yaml")
