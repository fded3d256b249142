#!/usr/bin/env bash
# Three etcd members on loopback, to try a lock helper on. Their data lie in DIR, target/etcd if not told; ports are whichever are
# free. `up` prints where they listen, to be taken in by a shell:
#
#   eval "$(scripts/etcd-cluster.sh up [DIR])"
#   claude-run --lock-helper 'etcdctl lock claude/me' true
#   scripts/etcd-cluster.sh down [DIR]
#
# DIR/1.pid to DIR/3.pid are the members' pids, DIR/1.log to DIR/3.log what they say, DIR/endpoints where they listen.
# `start DIR N` starts a member again that has ended.
set -euo pipefail
usage() { printf 'usage: %s up [DIR] | down [DIR] | start DIR N\n' "${0##*/}" >&2; exit 2; }
[ $# -ge 1 ] || usage
command=$1 called_in=$PWD dir=${2-}
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
case $dir in
  '') dir=$top/target/etcd ;;
  /*) ;;
  *) dir=$called_in/$dir ;;
esac

is_ours() { # is_ours PID: whether that is a member of this cluster, whatever else has had its number since
  tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "--data-dir $dir/"
}

start() { # start N: a member, by the ports in DIR/ports
  local n=$1 ports cluster='' i
  read -ra ports <"$dir/ports"
  for i in 1 2 3; do cluster+=${cluster:+,}$i=http://127.0.0.1:${ports[i + 2]}; done
  local client=http://127.0.0.1:${ports[n - 1]} peer=http://127.0.0.1:${ports[n + 2]}
  setsid etcd --name "$n" --data-dir "$dir/$n" --logger zap --log-level error \
    --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$cluster" \
    --initial-cluster-state new --initial-cluster-token "$dir" </dev/null >>"$dir/$n.log" 2>&1 &
  echo $! >"$dir/$n.pid"
  # Until its exec it is a copy of this script, and passes for none of ours; so it does once it has ended.
  for ((i = 0; i < 500; i++)); do
    if is_ours $! || ! kill -0 $! 2>/dev/null; then return; fi
    sleep 0.01
  done
}

stop() { # all members, whatever state they are in
  local file pid
  for file in "$dir"/[123].pid; do
    [ -e "$file" ] || continue
    pid=$(<"$file")
    while is_ours "$pid"; do
      kill -KILL "$pid" 2>/dev/null || true
      sleep 0.02
    done
  done
}

is_healthy() { # within half a minute
  local i
  for ((i = 0; i < 150; i++)); do
    for pid in "$dir"/[123].pid; do is_ours "$(<"$pid")" || return 1; done # a port was taken meanwhile
    if ETCDCTL_API=3 etcdctl --endpoints "$1" endpoint health >/dev/null 2>&1; then return 0; fi
    sleep 0.2
  done
  return 1
}

up() {
  local try port ports endpoints
  need etcd etcd-server
  need etcdctl etcd-client
  if [ -e "$dir" ]; then die "$dir is there already; take it down first: ${0##*/} down $dir"; fi
  mkdir -p "$dir"
  for try in 1 2 3 4 5; do
    ports=()
    while [ ${#ports[@]} -lt 6 ]; do
      port=$((20000 + RANDOM % 12000)) # below those that the kernel gives away by itself
      if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then ports+=("$port"); fi
    done
    echo "${ports[*]}" >"$dir/ports"
    endpoints=$(printf ',http://127.0.0.1:%s' "${ports[@]:0:3}")
    endpoints=${endpoints#,}
    for port in 1 2 3; do start "$port"; done
    if is_healthy "$endpoints"; then
      echo "$endpoints" >"$dir/endpoints"
      printf 'export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=%s\n' "$endpoints"
      return
    fi
    stop
    say "try $try failed: $(tail -qn 1 "$dir"/[123].log)" >&2
    rm -rf "$dir"/[123]
  done
  die "three members would not come up; $dir/1.log says why"
}

case $command in
  up) up ;;
  down)
    if [ -e "$dir" ] && [ ! -e "$dir/ports" ]; then die "$dir is no cluster of this script; leaving it alone"; fi
    stop
    rm -rf "$dir"
    ;;
  start)
    if [ $# != 3 ] || [ ! -e "$dir/ports" ]; then usage; fi
    start "$3"
    ;;
  *) usage ;;
esac
