#!/usr/bin/env bash
# Makes a bare machine a node: the project's exact requirements in an environment of its own.
# Run again, it changes only what is different. With an environment that is there already:
#   setup.sh /path/to/venv
set -euo pipefail
app="$(cd "$(dirname "$0")/../.." && pwd)"
mkdir -p "$HOME/.drone"
# Whoever reads the token controls the cluster.
if [ -f "$HOME/.ray/auth_token" ]; then chmod 600 "$HOME/.ray/auth_token"; fi

# To renew it: the version of a release of uv, and the SHA-256 of its two archives, which lie beside
# them on the release's page. uv itself checks the Python that it downloads.
uv_version=0.12.1
uv_sha256_x86_64=90b2f223fb69d19db49e117da601f64978593417988530aa733d456141b4bcbb
uv_sha256_aarch64=769d373e146692c639b5fbaae33b331c297a32e03d30448772051902df52bbf4
uv="$HOME/.drone/uv-$uv_version"

install_uv() {
    local archive machine sha256 name
    machine="$(uname -m)"
    name="uv_sha256_$machine"
    sha256="${!name:-}"
    [ -n "$sha256" ] || { echo "error: there is no uv for $machine here; give setup.sh an environment" >&2; exit 1; }
    archive="$(mktemp)"
    curl -LsSf --output "$archive" \
        "https://github.com/astral-sh/uv/releases/download/$uv_version/uv-$machine-unknown-linux-gnu.tar.gz"
    echo "$sha256  $archive" | sha256sum --check --quiet \
        || { rm "$archive"; echo "error: the download of uv $uv_version is damaged or was replaced" >&2; exit 1; }
    tar -xzf "$archive" -O "uv-$machine-unknown-linux-gnu/uv" > "$uv.arriving"
    chmod 755 "$uv.arriving"
    mv "$uv.arriving" "$uv"
    rm "$archive"
}

environment="${1:-}"
environment="${environment/#\~\//$HOME/}"  # It comes quoted.
if [ -n "$environment" ]; then
    "$environment/bin/python" -c "import ray, torch" \
        || { echo "error: $environment is no environment with Ray and torch" >&2; exit 1; }
    echo "$environment" > "$HOME/.drone/environment"
else
    rm -f "$HOME/.drone/environment"
    [ -x "$uv" ] || install_uv
    [ -x "$HOME/.drone/venv/bin/python" ] || "$uv" venv --quiet --python 3.11 "$HOME/.drone/venv"
    "$uv" pip install --quiet --python "$HOME/.drone/venv/bin/python" --require-hashes -r "$app/requirements.lock"
fi

line="$(printf '. %q' "$app/deploy/node/env.sh")"
touch "$HOME/.bashrc"
grep -qxF "$line" "$HOME/.bashrc" || echo "$line" >> "$HOME/.bashrc"
