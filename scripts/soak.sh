#!/usr/bin/env bash
# Long and large: what a test that runs at every change has no time for.
#
#   scripts/soak.sh [PART...]     all parts, or some of these:
#
#   waiters   1,000 runs wait for one lock; when it is free, all are served, in the order of their arrival, and leave nothing
#   runs      10,000 short runs one after another, and as many of the library entry in one process: descriptors, threads, memory
#             and records stay flat, and the history is rotated
#   limit     the hard limit of two hours, by a clock that runs 3,600 times as fast (libfaketime, in a dynamically linked build;
#             a static binary has no place for it)
#   output    10 GiB of output, read along on the way, and one line of 10 GiB: every byte passes, in little memory
#
# It prints a line a part and ends with 0 if all is as it should be, with 1 if not.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || set -- waiters runs limit output
command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need cc gcc
need flock util-linux
cargo build --release --locked --quiet
run=$release/claude-run

work=$(mktemp -d)
holder=
trap 'rm -rf "$work"' EXIT
trap 'kill $(jobs -pr) 2>/dev/null; exit 143' TERM INT HUP
unset "${!CLAUDE_@}" RUST_BACKTRACE
export CLAUDE_CONFIG_DIR=$work/config
bad=0
wrong() {
  printf 'WRONG: %s\n' "$*"
  bad=1
}
records() { find "$CLAUDE_CONFIG_DIR/claude-run/runs" -type f | wc -l; }
is_free() { flock -n "$CLAUDE_CONFIG_DIR/session.lock" true; }
milliseconds() { echo $((${EPOCHREALTIME/./} / 1000)); }

waiters() {
  local count=1000 i pids=() began order=$work/order status
  mkdir -p "$CLAUDE_CONFIG_DIR"
  mkfifo "$work/go"
  "$run" sh -c "echo >'$work/held'; read -r _ <'$work/go'" &
  holder=$!
  until [ -s "$work/held" ]; do sleep 0.02; done
  for ((i = 0; i < count; i++)); do
    "$run" --wait 10m --label "$i" sh -c "echo $i >>'$order'" 2>/dev/null &
    pids+=($!)
    # In this order: the next one begins when this one is in the kernel's queue, which its record tells.
    until grep -qs '"state":"waiting"' "$CLAUDE_CONFIG_DIR/claude-run/runs/$!-"*.json; do sleep 0.005; done
  done
  sleep 1 # the last one has told so just before it sleeps
  status=$("$run" status --json | grep -o '"state": *"waiting"' | wc -l)
  began=$(milliseconds)
  echo go >"$work/go"
  for i in "${pids[@]}"; do wait "$i" || wrong "a waiter ended with $?"; done
  began=$(($(milliseconds) - began))
  wait "$holder"
  [ "$status" = "$count" ] || wrong "status counts $status waiters"
  [ "$(wc -l <"$order")" = "$count" ] || wrong "$(wc -l <"$order") of $count were served"
  sort -n "$order" | cmp -s - "$order" || wrong "not in the order of their arrival: $(head -n 5 "$order" | tr '\n' ' ')…"
  is_free || wrong "the lock is not free"
  [ "$(records)" = 0 ] || wrong "$(records) records are left"
  echo "waiters: $count waited, all were served in order within $began ms"
}

runs() {
  local count=10000 i began size
  began=$(milliseconds)
  for ((i = 0; i < count; i++)); do "$run" true || wrong "run $i ended with $?"; done
  began=$(($(milliseconds) - began))
  [ "$(records)" = 0 ] || wrong "$(records) records are left"
  size=$(du -sk "$CLAUDE_CONFIG_DIR" | cut -f 1)
  [ "$size" -lt $((18 * 1024)) ] || wrong "the config dir has grown to $size KiB"
  is_free || wrong "the lock is not free"
  echo "runs: $count in $began ms, $size KiB in the config dir"
  # The library's own check, in one process; it says what has grown.
  cargo test --release --locked --quiet --test library -- "$count" | tail -n 1
}

limit() {
  local code=0 began line
  need faketime faketime
  RUSTFLAGS='' CARGO_TARGET_DIR=$top/target/dynamic cargo build --release --locked --quiet
  began=$(milliseconds)
  # The child has the machine's own clock: two hours are two seconds for claude-run alone.
  faketime -f '+0 x3600' "$top/target/dynamic/${release#"$top/target/"}/claude-run" -- \
    env -u LD_PRELOAD -u FAKETIME -u FAKETIME_SHARED sleep 600 2>"$work/limit" || code=$?
  began=$(($(milliseconds) - began))
  line=$(grep -e '--timeout' "$work/limit" || true)
  [ "$code" = 124 ] || wrong "exit code $code: $(cat "$work/limit")"
  [[ $line == *"--timeout 2h reached"* ]] || wrong "it said: $line"
  [ "$began" -ge 1900 ] || wrong "it ended after $began ms, which are $((began * 3600 / 1000)) s for it"
  is_free || wrong "the lock is not free"
  echo "limit: $line ($began ms by our own clock)"
}

output() {
  local bytes=$((10 << 30)) name producer got peak began
  for name in lines line; do
    case $name in
      lines) producer='yes "{\"type\":\"assistant\",\"message\":\"lorem ipsum dolor sit amet, and so on for a line\"}"' ;;
      line) producer='cat /dev/zero' ;;
    esac
    began=$(milliseconds)
    # shellcheck disable=SC2016 # for the inner shell
    got=$("$run" sh -c "$producer | head -c $bytes; grep VmHWM /proc/\$PPID/status >&2" sh --output-format stream-json \
      2>"$work/peak" | wc -c)
    began=$(($(milliseconds) - began))
    peak=$(awk '/VmHWM/ { print $2 }' "$work/peak")
    [ "$got" = "$bytes" ] || wrong "$got of $bytes bytes"
    [ "$peak" -lt 24576 ] || wrong "a peak of $peak KiB"
    echo "output, $name: $((bytes >> 20)) MiB in $began ms, peak of $peak KiB"
  done
}

for part in "$@"; do
  rm -rf "${work:?}"/*
  case $part in
    waiters) waiters ;;
    runs) runs ;;
    limit) limit ;;
    output) output ;;
    *) die "$part is none of waiters, runs, limit and output" ;;
  esac
done
exit "$bad"
