#!/usr/bin/env bash
# Makes src/guide/status.svg, the picture in the README: three agents of one login on a terminal of 80 columns, one at work, two
# waiting. The fake claude of the tests stands in for the real one; all else is as anybody would see it.
#
#   scripts/screenshot.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

case "${1-}" in
  '') ;;
  *) die "unknown argument $1 (see --help)" ;;
esac
need script bsdutils
/usr/bin/python3 -c 'import rich' 2>/dev/null ||
  die "Python's rich is missing; install it (on Debian: apt-get install python3-rich) and try again"

cargo build --release --locked --quiet
cargo build --release --locked --quiet --example fake_claude
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/claude/config"
ln -s "$release/claude-run" "$work/bin/claude-run"
export PATH=$work/bin:$PATH CLAUDE_CONFIG_DIR=$work/claude/config CLAUDE_RUN_CLAUDE=$release/examples/fake_claude
printf '{"claudeAiOauth":{"accessToken":"a","refreshToken":"r","expiresAt":%d000,"scopes":["user:inference"]}}' \
  $(($(date +%s) + 17999)) >"$CLAUDE_CONFIG_DIR/.credentials.json"
chmod -R go= "$work/claude"
for agent in dev-agent review-agent planner; do
  claude-run --label "$agent" --stdin null -- -p "sleep 60" >/dev/null 2>&1 &
  pids+=($!)
  sleep 1.5 # so that each has an age of its own
done
# The directory of this run is not news; the words are those of the machine in the README.
TERM=xterm-256color script -qec "stty cols 80 rows 24; claude-run status || true" /dev/null |
  sed "s,$work/claude,/srv/claude,g" >"$work/screen"
/usr/bin/python3 - "$work/screen" src/guide/status.svg <<'PYTHON'
import re, sys
from rich.console import Console
from rich.text import Text

screen = open(sys.argv[1], encoding="utf-8").read().replace("\r", "")
console = Console(record=True, width=80, file=open("/dev/null", "w"), force_terminal=True)
console.print(Text.from_ansi("$ claude-run status\n" + screen.rstrip("\n")), soft_wrap=True)
svg = console.export_svg(title="three agents, one login", unique_id="status")
svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # it is read without a network
open(sys.argv[2], "w", encoding="utf-8").write(re.sub(r"[ \t]+$", "", svg, flags=re.M))
PYTHON
say "made src/guide/status.svg"
