#!/usr/bin/env bash
# The main job, seen: builds claude-run and starts three agents at once on one login. In mode `exclusive` they take turns, in mode
# `refresh` they work side by side; each says how long it waited.
#
#   scripts/quickstart.sh           with a fake claude that works for a second
#   scripts/quickstart.sh --real    with the claude on PATH and its login, in mode `exclusive`: three short prompts, which cost a little
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

say "building: about a minute the first time"
targets=(--bin claude-run)
$real || targets+=(--example fake_claude)
cargo build --locked "${targets[@]}" # with cargo's own progress; what install.sh builds, small and fast, takes twice as long
built=${release%release}debug
run=$built/claude-run

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
modes=(exclusive refresh)
if $real; then
  command -v claude >/dev/null || die "--real wants a claude on PATH; install Claude Code, or leave --real out"
  modes=(exclusive)
  words=(-p "Say hello in one word.")
else
  export CLAUDE_CONFIG_DIR=$work/config CLAUDE_RUN_CLAUDE=$built/examples/fake_claude
  mkdir -m 700 "$CLAUDE_CONFIG_DIR"
  # A token that lives for an hour: none of them has to refresh it.
  printf '{"claudeAiOauth":{"accessToken":"a","refreshToken":"r","expiresAt":%d}}' $((($(date +%s) + 3600) * 1000)) \
    >"$CLAUDE_CONFIG_DIR/.credentials.json"
fi

# now: milliseconds since the start of the three.
now() { echo $(($(date +%s%3N) - began)); }

agent() { # agent NAME CODE
  local name=$1 code=0 line
  $real || words=(-p "say hello from $name; sleep 1; exit $2")
  "$run" --lock "$mode" --label "$name" --stdin null -- "${words[@]}" >"$work/$name.out" 2>"$work/$name.err" || code=$?
  echo "$name" >>"$work/order"
  printf '%6d ms  %s has ended with exit code %d: %s\n' "$(now)" "$name" "$code" "$(tail -n 1 "$work/$name.out")"
  while read -r line; do printf '           %s: %s\n' "$name" "$line"; done <"$work/$name.err"
}

for mode in "${modes[@]}"; do
  say "three agents at once, --lock $mode"
  : >"$work/order"
  began=$(date +%s%3N)
  agent agent-1 0 &
  agent agent-2 0 &
  agent agent-3 7 &
  sleep 0.5
  "$run" status | sed -n '/^held by/,/^refresh/{/^refresh/!p}'
  wait
  took=$(now)
  mapfile -t order <"$work/order"
  case $mode in
    exclusive) printf '\n%s ran first, %s waited for it, and %s for both: at no time were two at work.\n' "${order[@]}" ;;
    refresh) printf '\nAll three within %d ms: the token is fresh, so nobody needs the lock.\n' "$took" ;;
  esac
done
$real || echo "agent-3 was told to fail, and its exit code 7 came through."
printf '\nThe binary: %s\nTry it:     %s -- -p "hi"\n' "$run" "$run"
