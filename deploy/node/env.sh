# What shells and Ray's processes on a node of the cluster have set. Sourced, never run.
DRONE_ENV="${DRONE_ENV:-$(cat "$HOME/.drone/environment" 2>/dev/null || echo "$HOME/.drone/venv")}"
export DRONE_ENV PATH="$DRONE_ENV/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# A machine that is cut off is given up after about 20 s, not after a minute.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=4000 RAY_health_check_failure_threshold=4
if [ -f "$HOME/.drone/node.env" ]; then . "$HOME/.drone/node.env"; fi
