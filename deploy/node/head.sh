#!/usr/bin/env bash
# Starts Ray's head and the tracking server on this machine.
#   head.sh [ADDRESS [CPUS]]    the address that the other nodes reach, cores for training here
set -euo pipefail
app="$(cd "$(dirname "$0")/../.." && pwd)"
address="${1:-$(hostname -I | cut -d' ' -f1)}"
. "$app/deploy/node/env.sh"
# From an earlier start: the commands below must act on this machine, not on that cluster.
unset RAY_ADDRESS

# Sets storage, region and share_tracking.
settings="$(python "$app/deploy/node/settings.py" "$HOME/ray_bootstrap_config.yaml")"
eval "$settings"
interface="$(ip -o -4 addr show | awk -v ip="$address" 'index($4, ip "/") == 1 {print $2; exit}')"
mlflow="$HOME/.drone/mlflow"
mkdir -p "$mlflow"
# Only the job's process logs, and it runs here: no other machine needs to reach MLflow.
listen=127.0.0.1
if [ "$share_tracking" = True ]; then listen="$address"; fi
set_variable() {  # for every shell on this machine
    printf 'export %s=%q\n' "$1" "$2"
}
{
    set_variable RAY_ADDRESS "$address:6379"
    set_variable MLFLOW_TRACKING_URI "http://$listen:5000"
    # Without it gloo takes 127.0.0.1 where host names do not resolve.
    if [ -n "$interface" ]; then set_variable GLOO_SOCKET_IFNAME "$interface"; fi
    if [ -n "$storage" ]; then set_variable DRONE_STORAGE "$storage"; fi
    if [ -n "$region" ]; then set_variable AWS_DEFAULT_REGION "$region"; fi
    if [ "$listen" != 127.0.0.1 ]; then
        PYTHONPATH="$app" python -c "import pathlib, sys; from drone import secret_file
secret_file.read_or_create(pathlib.Path(sys.argv[1]))" "$mlflow/password"
        set_variable MLFLOW_TRACKING_USERNAME admin
        printf 'export MLFLOW_TRACKING_PASSWORD="$(cat %q)"\n' "$mlflow/password"
    fi
} > "$HOME/.drone/node.env"
. "$HOME/.drone/node.env"
unset RAY_ADDRESS

ray stop
ulimit -n 65536 2> /dev/null || true
ray start --head --port=6379 --node-ip-address="$address" --dashboard-host=127.0.0.1 \
    ${2:+--num-cpus="$2"} --autoscaling-config="$HOME/ray_bootstrap_config.yaml"

# One tracking server, of the code that is here now.
if [ -f "$HOME/.drone/tracking.pid" ]; then
    pid="$(cat "$HOME/.drone/tracking.pid")"
    if tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q tracking.py; then
        kill "$pid"
        for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.2; done
    fi
fi
# In a session of its own, as it must outlive the SSH connection of `ray up`.
setsid nohup python "$app/ray_jobs/tracking.py" --host "$listen" --folder "$mlflow" \
    ${storage:+--backup "$storage/mlflow"} --until-closed "$address:6379" \
    > "$HOME/.drone/tracking.log" 2>&1 < /dev/null &
echo $! > "$HOME/.drone/tracking.pid"
