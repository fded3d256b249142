#!/usr/bin/env bash
# The race of race.sh with the real Claude Code, in several versions, against a stand-in for its hosts on loopback, with a made-up
# login. Prints one row for each layout, cause and lock mode, and one column for each version:
# refreshes / invalid_grant, how many runs failed if some did, and after how long all had ended.
#
#   scripts/race-real.sh [-n AGENTS] [--refresh SECONDS] [--run SECONDS] [--versions "A B…"] [--timeout SECONDS] [ROW...]
#
#   -n AGENTS           how many start at once (4)
#   --refresh SECONDS   how long the endpoint takes for a refresh (1)
#   --run SECONDS       how long the API takes for its answer (1)
#   --versions "A B…"   installed from npm, below target/ ("2.1.84 2.1.126 2.1.177 2.1.330 2.1.332")
#   --timeout SECONDS   hard limit of each agent (240)
#   ROW                 only rows that begin so: `shared`, `"bind 401"`
#
# Layouts: `shared` is one config dir; in `bind` it is bind-mounted at another path for each agent; in `file` each agent has a config
# dir of its own, into which `.credentials.json` alone is mounted. Causes: the token has `expired`, or is refused (`401`) long before.
# It wants root: nothing here can leave its network namespace. CLAUDE_RUN_BIN names another claude-run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

agents=4 refresh=1 run=1 limit=240
versions='2.1.84 2.1.126 2.1.177 2.1.330 2.1.332'
take_values -n=agents --refresh=refresh --run=run --versions=versions --timeout=limit -- "$@"

if [ -z "${RACE_REAL-}" ]; then
  need openssl openssl
  need node nodejs
  need npm npm
  need python3 python3
  [ -n "${CLAUDE_RUN_BIN-}" ] || cargo build --release --locked --quiet --bin claude-run
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  for version in $versions; do
    dir=target/npm/claude-$version
    [ -d "$dir/node_modules" ] ||
      npm install --prefix "$dir" --no-save --no-audit --no-fund --silent "@anthropic-ai/claude-code@$version"
  done
  hosts=(platform.claude.com api.anthropic.com claude.ai console.anthropic.com)
  printf '127.0.0.1 localhost %s\n' "${hosts[*]}" >"$work/hosts"
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=race -addext "subjectAltName=$(printf 'DNS:%s,' "${hosts[@]}")DNS:localhost" \
    -keyout "$work/key" -out "$work/certificate" 2>/dev/null
  export RACE_REAL=$work
  unshare -n -m "$0" "$@"
  exit
fi
work=$RACE_REAL
ip link set lo up
mount --bind "$work/hosts" /etc/hosts
python3 "${0%.sh}.py" 443 "$work/certificate" "$work/key" &
api=$!
trap 'kill $api' EXIT

claude_run=${CLAUDE_RUN_BIN:-$release/claude-run}
ask() { curl --silent --cacert "$work/certificate" --retry 20 --retry-connrefused --retry-delay 1 "https://localhost/race${1-}"; }

# agent VERSION MODE HOME: one agent, in $CLAUDE_CONFIG_DIR.
agent() {
  local claude=$top/target/npm/claude-$1/node_modules/@anthropic-ai/claude-code
  if [ -x "$claude-linux-x64/claude" ]; then claude=$claude-linux-x64/claude; else claude=$claude/cli.js; fi
  exec env -i PATH="$PATH" HOME="$3" CLAUDE_CONFIG_DIR="$CLAUDE_CONFIG_DIR" IS_SANDBOX=1 NODE_EXTRA_CA_CERTS="$work/certificate" \
    DISABLE_AUTOUPDATER=1 CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 \
    "$claude_run" --lock "$2" --timeout "$limit" --claude "$claude" -- -p hi </dev/null
}
export -f agent
export claude_run work limit top

# race VERSION LAYOUT CAUSE MODE: prints the cell.
race() {
  local dir=$work/race i pids=() code failed=0 began life=-100 counts
  rm -rf "$dir"
  mkdir -p "$dir/shared/config"
  [ "$3" = expired ] || life=28800
  printf '{"claudeAiOauth":{"accessToken":"at-0","refreshToken":"rt-0","expiresAt":%d,"scopes":["user:inference","user:profile"]}}' \
    $((($(date +%s) + life) * 1000)) >"$dir/shared/config/.credentials.json"
  ask "?refresh=$refresh&answer=$run" >/dev/null
  began=${EPOCHREALTIME/./}
  for ((i = 0; i < agents; i++)); do
    local shared='' own=$dir/container-$i/config
    mkdir -p "$own" "$dir/home-$i"
    case $2 in
      bind) shared=/ ;;
      file) shared=/.credentials.json && : >"$own/.credentials.json" ;;
      *) own=$dir/shared/config ;;
    esac
    if [ -n "$shared" ]; then
      # shellcheck disable=SC2016 # for the shell in the container
      CLAUDE_CONFIG_DIR=$own unshare -m bash -c 'mount --bind "$0" "$CLAUDE_CONFIG_DIR$1" && shift && agent "$@"' \
        "$dir/shared/config$shared" "$shared" "$1" "$4" "$dir/home-$i" >"$dir/$i.out" 2>&1 &
    else
      (CLAUDE_CONFIG_DIR=$own agent "$1" "$4" "$dir/home-$i" >"$dir/$i.out" 2>&1) &
    fi
    pids+=($!)
  done
  for i in "${pids[@]}"; do
    code=0
    wait "$i" || code=$?
    [ "$code" = 0 ] || failed=$((failed + 1))
  done
  counts=$(ask)
  count() { [[ $counts =~ \"$1\":\ ([0-9]+) ]] && printf '%d' "${BASH_REMATCH[1]}"; }
  printf '%d / %d' "$(count posts)" "$(count invalid_grant)"
  [ "$failed" = 0 ] || printf ', %d failed' "$failed"
  printf ' (%d s)' $(((${EPOCHREALTIME/./} - began + 500000) / 1000000))
}

printf '%d agents at once; a refresh takes %s s, an answer %s s\n\n| layout | cause | mode |' "$agents" "$refresh" "$run"
for version in $versions; do printf ' %s |' "$version"; done
printf '\n|---|---|---|%s\n' "$(for version in $versions; do printf -- '---|'; done)"
for layout in shared bind file; do
  for cause in expired 401; do
    for mode in pass-through refresh exclusive; do
      row="$layout $cause $mode" wanted=''
      for begin in "${rows[@]}"; do [[ $row != "$begin"* ]] || wanted=yes; done
      [ -n "$wanted" ] || continue
      printf '| %s | %s | \x60%s\x60 |' "$layout" "$cause" "$mode"
      for version in $versions; do printf ' %s |' "$(race "$version" "$layout" "$cause" "$mode")"; done
      printf '\n'
    done
  done
done
