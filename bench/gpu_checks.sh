#!/usr/bin/env bash
# Checks and measures all that the project does on a GPU, in under 8 minutes, and prints one table.
#
#     bench/gpu_checks.sh [WHEELS]
#
# Needs Python with torch and torchvision for the card, and no network. What else Python lacks is
# installed from WHEELS, a folder of wheels, into an environment of its own; what is in neither is
# named, and the checks that need it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
wheels=${1:-}
if [ -n "$wheels" ]; then
    environment=$(mktemp -d)/environment
    "$python" -m venv --system-site-packages "$environment"
    python=$environment/bin/python
    for wheel in "$wheels"/*.whl; do
        # One by one, and without dependencies: one that does not fit must not cost the others.
        "$python" -m pip install --quiet --no-index --no-deps "$wheel" ||
            echo "left out: $wheel" >&2
    done
fi
exec "$python" bench/gpu_checks.py
