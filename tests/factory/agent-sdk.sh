# shellcheck shell=bash
# A factory's lib/agent-sdk.sh before claude-run: the shape that the README's diff is for.
# shellcheck disable=SC2034,SC2015 # what callers read; rc=$? is meant

redact_log_secrets() { cat; }

# claude_run_with_watchdog: claude, and after it what a watchdog does.
claude_run_with_watchdog() {
  local rc=0
  timeout --foreground "${CLAUDE_TIMEOUT:-7200}" "$@" </dev/null || rc=$?
  echo "the old function ran" >>"$LOGFILE"
  return "$rc"
}

agent_run() {
  local prompt=$1
  local -a args=(-p "$prompt" --output-format stream-json)
  local run_dir=$PWD
  local lock_file="${HOME}/.claude/session.lock"
  local output rc
  log "agent_run: starting"
  # The lock is off, unless somebody switches it on.
  if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
    mkdir -p "$(dirname "$lock_file")"
    output=$(cd "$run_dir" && ( flock -w 600 9 || exit 1; claude_run_with_watchdog claude "${args[@]}" ) 9>"$lock_file" 2>>"$LOGFILE") && rc=0 || rc=$?
  else
    output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?
  fi
  _AGENT_SESSION_ID=$(printf '%s' "$output" | jq -rs 'last.session_id // empty')
  printf '%s' "$output" >agent-run-last.json

  local nudge="You have not pushed." nudge_rc
  if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
    output=$(cd "$run_dir" && ( flock -w 600 9 || exit 1; claude_run_with_watchdog claude -p "$nudge" --resume "$_AGENT_SESSION_ID" --output-format json ) 9>"$lock_file" 2>>"$LOGFILE") && nudge_rc=0 || nudge_rc=$?
  else
    output=$(cd "$run_dir" && claude_run_with_watchdog claude -p "$nudge" --resume "$_AGENT_SESSION_ID" --output-format json 2>>"$LOGFILE") && nudge_rc=0 || nudge_rc=$?
  fi
  log "agent_run: nudged, exit code $nudge_rc"
  return "$rc"
}
