# What shells and Ray's processes on a node of the cluster have set. Sourced, never run.
DRONE_ENV="${DRONE_ENV:-$(cat "$HOME/.drone/environment" 2>/dev/null || echo "$HOME/.drone/venv")}"
export DRONE_ENV PATH="$DRONE_ENV/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
if [ -f "$HOME/.drone/node.env" ]; then . "$HOME/.drone/node.env"; fi
