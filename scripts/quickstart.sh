#!/usr/bin/env bash
# The main job, seen: builds claude-run and starts three agents at once on one config dir. They run one after another, and
# each says how long it waited.
#
#   scripts/quickstart.sh           with a fake claude that works for a second
#   scripts/quickstart.sh --real    with the claude on PATH and its login: three short prompts, which cost a little
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

case "${1-}" in
  '') real=false ;;
  --real) real=true ;;
  *) die "usage: scripts/quickstart.sh [--real]" ;;
esac
command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need cc gcc

say "building (about a minute the first time)"
cargo build --release --locked --quiet
run=$release/claude-run

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if $real; then
  command -v claude >/dev/null || die "--real wants a claude on PATH; install Claude Code, or leave --real out"
  say "three agents, the claude at $(command -v claude), your login"
  words=(-p "Say hello in one word.")
else
  cargo build --release --locked --quiet --example fake_claude
  export CLAUDE_CONFIG_DIR=$work/config CLAUDE_RUN_CLAUDE=$release/examples/fake_claude
  say "three agents, a fake claude, the session lock $CLAUDE_CONFIG_DIR/session.lock"
fi

# now: milliseconds since the start.
began=$(date +%s%3N)
now() { echo $(($(date +%s%3N) - began)); }

agent() {
  local name=$1 code=0 line
  $real || words=(-p "say hello from $name; sleep 1; exit $2")
  "$run" --stdin null -- "${words[@]}" >"$work/$name.out" 2>"$work/$name.err" || code=$?
  echo "$name" >>"$work/order"
  printf '%6d ms  %s has ended with exit code %d: %s\n' "$(now)" "$name" "$code" "$(tail -n 1 "$work/$name.out")"
  while read -r line; do printf '           %s: %s\n' "$name" "$line"; done <"$work/$name.err"
}

agent agent-1 0 &
agent agent-2 0 &
agent agent-3 7 &
wait
mapfile -t order <"$work/order"
printf '\n%s ran first, %s waited for it, and %s for both: at no time were two inside.\n' "${order[@]}"
$real || echo "agent-3 was told to fail, and its exit code 7 came through."
printf '\nThe binary: %s\nTry it:     %s -- -p "hi"\n' "$run" "$run"
