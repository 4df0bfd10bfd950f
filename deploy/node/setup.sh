#!/usr/bin/env bash
# Makes a bare machine a node: the project's exact requirements in an environment of its own.
# Run again, it changes only what is different. With an environment that is there already:
#   setup.sh /path/to/venv
set -euo pipefail
app="$(cd "$(dirname "$0")/../.." && pwd)"
mkdir -p "$HOME/.drone"

if [ -n "${1:-}" ]; then
    "$1/bin/python" -c "import ray, torch" || { echo "error: $1 is no environment with Ray and torch" >&2; exit 1; }
    echo "$1" > "$HOME/.drone/environment"
else
    rm -f "$HOME/.drone/environment"
    command -v "$HOME/.local/bin/uv" > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -x "$HOME/.drone/venv/bin/python" ] || "$HOME/.local/bin/uv" venv --quiet --python 3.11 "$HOME/.drone/venv"
    "$HOME/.local/bin/uv" pip install --quiet --python "$HOME/.drone/venv/bin/python" -r "$app/requirements.txt"
fi

line=". $app/deploy/node/env.sh"
touch "$HOME/.bashrc"
grep -qxF "$line" "$HOME/.bashrc" || echo "$line" >> "$HOME/.bashrc"
