#!/usr/bin/env bash
# The headline: agents that start at once on an expired token, against an endpoint that rotates its tokens as the real one does.
# One row for each lock mode (and the old bash block), layout and kind of lock that claude itself takes.
#
#   scripts/race.sh [-n AGENTS] [-r ROUNDS] [--refresh SECONDS] [--run SECONDS] [ROW...]
#
#   -n AGENTS          how many start at once (12)
#   -r ROUNDS          how often each race is run (1); numbers are sums over all rounds, times are medians
#   --refresh SECONDS  how long the endpoint takes for a refresh (1)
#   --run SECONDS      how long an agent works once it has its token (2)
#   ROW                only rows that begin so: `refresh`, `"exclusive bind"`
#
# Layouts: `shared` is one config dir; in `bind` it is bind-mounted at another path for each agent, as into containers (that
# wants root, or user namespaces); in `file` each agent has a config dir of its own, into which `.credentials.json` alone is mounted.
# `401-shared` and `401-bind` are the first two with a token that is refused long before it expires. The agents are fake claudes that refresh their token under no lock of their own, under that of
# the versions up to 2.1.126 (`legacy`) or the two of those from 2.1.128 (`modern`). CLAUDE_RUN_BIN names another claude-run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

agents=12 rounds=1 refresh=1 run=2
take_values -n=agents -r=rounds --refresh=refresh --run=run -- "$@"
command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need cc gcc
need flock util-linux

cargo build --release --locked --quiet --bin claude-run --example fake_claude --example oauth_stand_in
claude_run=${CLAUDE_RUN_BIN:-$release/claude-run}
export CLAUDE_RUN_CLAUDE=$release/examples/fake_claude
stand_in=$release/examples/oauth_stand_in

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CLAUDE_CONFIG_DIR CLAUDE_RUN_LOCK CLAUDE_EXTERNAL_LOCK ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN CLAUDE_CODE_OAUTH_TOKEN

layouts=(shared bind file 401-shared 401-bind)
container=()
for flags in -m -rm; do
  if [ ${#container[@]} = 0 ] && unshare "$flags" mount --bind /usr /usr 2>/dev/null; then container=(unshare "$flags"); fi
done
if [ ${#container[@]} = 0 ]; then
  layouts=(shared 401-shared)
  echo "mount namespaces are refused here: the layout with bind mounts is left out" >&2
fi

# agent MODE KIND: one agent, in $CLAUDE_CONFIG_DIR.
agent() {
  local prompt="refresh $2; ask $2"
  case $1 in
    block) (flock -w 600 9 || exit 1; exec "$CLAUDE_RUN_CLAUDE" -p "$prompt") 9>"$CLAUDE_CONFIG_DIR/session.lock" ;;
    *) "$claude_run" --lock "$1" -- -p "$prompt" ;;
  esac
}
export -f agent
export claude_run

# race MODE LAYOUT KIND COUNT: sets posts, invalid, failed, most and wall (in ms).
race() {
  local dir=$work/race i pids=() code began counts
  rm -rf "$dir"
  mkdir -p "$dir/shared/config"
  local life=-100
  case $2 in 401-*) life=28800 ;; esac
  printf '{"claudeAiOauth":{"accessToken":"at-0","refreshToken":"rt-0","expiresAt":%d}}' $((($(date +%s) + life) * 1000)) \
    >"$dir/shared/config/.credentials.json"
  mkfifo "$dir/end"
  "$stand_in" --refresh-takes "$refresh" --answer-takes "$run" <"$dir/end" >"$dir/counts" &
  exec 5>"$dir/end"
  until [ -s "$dir/counts" ]; do sleep 0.01; done
  FAKE_API=http://127.0.0.1:$(sed -n 's/^listening //p' "$dir/counts")
  export FAKE_API
  began=${EPOCHREALTIME/./}
  for ((i = 0; i < $4; i++)); do
    local shared='' own=$dir/container-$i/config
    mkdir -p "$own"
    case $2 in
      *bind) shared=/ ;;
      file) shared=/.credentials.json && : >"$own/.credentials.json" ;;
      *) own=$dir/shared/config ;;
    esac
    if [ -n "$shared" ]; then
      # shellcheck disable=SC2016 # for the shell in the container
      CLAUDE_CONFIG_DIR=$own "${container[@]}" bash -c 'mount --bind "$0" "$CLAUDE_CONFIG_DIR$1" && shift && agent "$@"' \
        "$dir/shared/config$shared" "$shared" "$1" "$3" >"$dir/$i.out" 2>&1 5>&- &
    else
      CLAUDE_CONFIG_DIR=$own agent "$1" "$3" >"$dir/$i.out" 2>&1 5>&- &
    fi
    pids+=($!)
  done
  failed=0
  for i in "${pids[@]}"; do
    code=0
    wait "$i" || code=$?
    [ "$code" = 0 ] || failed=$((failed + 1))
  done
  wall=$(((${EPOCHREALTIME/./} - began) / 1000))
  exec 5>&-
  wait
  counts=$(tail -n 1 "$dir/counts")
  count() { [[ $counts =~ \"$1\":([0-9]+) ]] && printf '%d' "${BASH_REMATCH[1]}"; }
  posts=$(count posts) invalid=$(count invalid_grant) most=$(count most_at_once)
}

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
seconds() { printf '%d.%02d s' $(($1 / 1000)) $(($1 % 1000 / 10)); }

alone=$(for _ in 1 2 3; do race pass-through shared legacy 1; echo "$wall"; done | median)
printf '%d agents on one expired token; a refresh takes %s s, a run %s s; one agent alone: %s; %d round(s)\n\n' \
  "$agents" "$refresh" "$run" "$(seconds "$alone")" "$rounds"
printf '| %-12s | %-10s | %-6s | %9s | %13s | %6s | %7s | %9s | %8s | %s\n' \
  mode layout lock refreshes invalid_grant failed clean 'all ended' 'of alone' 'at once |'
printf '|---|---|---|---|---|---|---|---|---|---|\n'
for mode in block pass-through exclusive refresh; do
  for layout in "${layouts[@]}"; do
    for kind in none legacy modern; do
      row="$mode $layout $kind"
      wanted=''
      for begin in "${rows[@]}"; do [[ $row != "$begin"* ]] || wanted=yes; done
      [ -n "$wanted" ] || continue
      total_posts=0 total_invalid=0 total_failed=0 clean=0 highest=0
      : >"$work/walls"
      for ((round = 0; round < rounds; round++)); do
        race "$mode" "$layout" "$kind" "$agents"
        total_posts=$((total_posts + posts)) total_invalid=$((total_invalid + invalid)) total_failed=$((total_failed + failed))
        [ "$posts $invalid $failed" != "1 0 0" ] || clean=$((clean + 1))
        [ "$most" -le "$highest" ] || highest=$most
        echo "$wall" >>"$work/walls"
      done
      wall=$(median <"$work/walls")
      printf '| %-12s | %-10s | %-6s | %9d | %13d | %6d | %3d/%-3d | %9s | %8s | %6d |\n' "${mode/block/bash block}" "$layout" \
        "$kind" "$total_posts" "$total_invalid" "$total_failed" "$clean" "$rounds" "$(seconds "$wall")" \
        "$((wall * 100 / alone / 100)).$(printf %02d $((wall * 100 / alone % 100)))" "$highest"
    done
  done
done
printf '\nclean: rounds with one refresh, no invalid_grant and no agent that failed. at once: the most agents at work at one time.\n'
