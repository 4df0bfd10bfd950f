#!/usr/bin/env bash
# Joins this machine to the cluster whose head is RAY_HEAD_IP.
set -euo pipefail
app="$(cd "$(dirname "$0")/../.." && pwd)"
. "$app/deploy/node/env.sh"
# From an earlier start: the commands below must act on this machine, not on that cluster.
unset RAY_ADDRESS

interface="$(ip -o route get "$RAY_HEAD_IP" | sed -n 's/.* dev \([^ ]*\).*/\1/p')"
own="$(ip -o route get "$RAY_HEAD_IP" | sed -n 's/.* src \([^ ]*\).*/\1/p')"
mkdir -p "$HOME/.drone"
{
    printf 'export RAY_ADDRESS=%q\n' "$RAY_HEAD_IP:6379"
    # Without it gloo takes 127.0.0.1 where host names do not resolve.
    if [ -n "$interface" ]; then printf 'export GLOO_SOCKET_IFNAME=%q\n' "$interface"; fi
} > "$HOME/.drone/node.env"
. "$HOME/.drone/node.env"
unset RAY_ADDRESS

ray stop
ulimit -n 65536 2> /dev/null || true
ray start --address="$RAY_HEAD_IP:6379" ${own:+--node-ip-address="$own"} ${1:+--num-cpus="$1"}
