#!/usr/bin/env bash
# How a lock helper scales: HOSTS contenders (100 if not told) at one lock of a real etcd of three members, each a claude-run with
# a config dir and a lock file of its own, all on this machine. Prints what the members do while all but one wait, and how long
# the lock takes from one host to the next.
#
#   scripts/bench-hosts.sh [HOSTS] [TTL]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
hosts=${1:-100} ttl=${2:-10}
cargo build --release --locked --quiet
claude_run=$release/claude-run
place=$(mktemp -d) holder=
finish() {
  [ -z "$holder" ] || kill "$holder" 2>/dev/null || true
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  scripts/etcd-cluster.sh down "$place/etcd"
  rm -rf "$place"
}
trap finish EXIT
eval "$(scripts/etcd-cluster.sh up "$place/etcd")"
read -ra endpoints <<<"${ETCDCTL_ENDPOINTS//,/ }"

agent() { # agent HOST COMMAND…: becomes it
  mkdir -p "$place/$1"
  export CLAUDE_CONFIG_DIR=$place/$1 CLAUDE_RUN_LOCK_HELPER="etcdctl lock --ttl $ttl claude/login"
  exec "$claude_run" -q --wait 1h "${@:2}"
}
total() { # total METRIC: over all members
  local endpoint
  for endpoint in "${endpoints[@]}"; do exec 3<>"/dev/tcp/127.0.0.1/${endpoint##*:}"
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; cat <&3; exec 3>&-; done |
    awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%d\n", sum }'
}
waiting() { etcdctl get --prefix --keys-only claude/login/ | grep -c . || true; }
cpu() { # of the members, in ticks
  local n
  for n in 1 2 3; do cut -d' ' -f14,15 "/proc/$(<"$place/etcd/$n.pid")/stat"; done | awk '{ sum += $1 + $2 } END { print sum }'
}

say "$hosts hosts, sessions of $ttl s"
agent holder sh -c "echo >'$place/held'; exec sleep 86400" &
holder=$!
until [ -e "$place/held" ]; do sleep 0.1; done
children=()
for ((host = 1; host <= hosts; host++)); do
  # When it begins and when it ends.
  # shellcheck disable=SC2016 # they are the child's
  agent "$host" sh -c 'begun=$(date +%s%N); echo "$begun $(date +%s%N)" >>"$0"' "$place/turns" &
  children+=($!)
  [ $((host % 50)) != 0 ] || until [ "$(waiting)" -gt "$host" ]; do sleep 0.5; done
done
until [ "$(waiting)" -gt "$hosts" ]; do sleep 0.5; done

renewed=$(total 'grpc_server_msg_received_total{grpc_method="LeaseKeepAlive"') ticks=$(cpu) since=$SECONDS
sleep 30
seconds=$((SECONDS - since))
renewed=$(($(total 'grpc_server_msg_received_total{grpc_method="LeaseKeepAlive"') - renewed)) ticks=$(($(cpu) - ticks))
awk -v n="$renewed" -v ticks="$ticks" -v s="$seconds" -v hz="$(getconf CLK_TCK)" -v hosts="$hosts" 'BEGIN {
  printf "waiting: %.1f keep-alives a second (%.2f a host), %.1f %% of a core for the three members\n", n / s, n / s / hosts, 100 * ticks / hz / s }'
memory() { awk '/^Pss:/ { sum += $2 } END { print sum + 0 }' "$@" 2>/dev/null; }
one=${children[0]}
monitor=$(pgrep -P "$one" || true) helper=$(pgrep -P "${monitor:-1}" || true)
printf 'a waiting host: %s KiB for claude-run and the monitor, %s KiB for etcdctl\n' \
  "$(memory "/proc/$one/smaps_rollup" "/proc/$monitor/smaps_rollup")" "$(memory "/proc/$helper/smaps_rollup")"

kill "$holder"
wait "$holder" || true
holder=
failed=0
for child in "${children[@]}"; do wait "$child" || failed=$((failed + 1)); done
sort -n "$place/turns" | awk 'NR > 1 { gap = ($1 - end) / 1e6; if (gap < 0) overlaps++; print gap } { end = $2 }
  END { print overlaps + 0 >"/dev/stderr" }' 2>"$place/overlaps" | sort -n >"$place/gaps"
awk -v failed="$failed" -v overlaps="$(<"$place/overlaps")" '{ gap[NR] = $1 }
  END { printf "hand-off: median %.1f ms, 99 of 100 under %.1f ms, longest %.1f ms; %d turns, %d failed, %d overlapped\n",
        gap[int((NR + 1) / 2)], gap[int(NR * 0.99 + 0.5)], gap[NR], NR + 1, failed, overlaps }' "$place/gaps"
