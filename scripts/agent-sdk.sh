# shellcheck shell=bash
# claude_run_with_watchdog on claude-run: sourced by the factory's lib/agent-sdk.sh in place of its own function.
# Needs bash 4.4 or later and claude-run; no other tool but rm.
#
#   claude_run_with_watchdog COMMAND [ARGS...]        claude, or another harness
#
# Runs COMMAND under claude-run: lock, hard limit, result grace, nothing left behind. It
# - prints what COMMAND prints on stdout, with secrets masked (CLAUDE_RUN_REDACT=log: unchanged), and nothing else;
# - returns COMMAND's exit code, or one of claude-run's: 75 lock not free, 124 limit, 125 own failure, 126 and 127 COMMAND
#   cannot be run or is not there, 128+N;
# - gives COMMAND /dev/null to read: the stdin of a caller's `while read` loop is the caller's.
#
# Variables, exported or not: CLAUDE_TIMEOUT, CLAUDE_IDLE_GRACE, CLAUDE_EXTERNAL_LOCK, LOG_AGENT and
#   LOGFILE           gets COMMAND's stdout and stderr line by line as they come, masked, what claude-run says, and at the end
#                     one line through the caller's `log`, if there is such a function:
#                       watchdog: timeout_exit=0 elapsed_wall=12s limit=7200s exit=0
#                     timeout_exit is 124 where a limit ended the run, else 0. $LOGFILE.runs.jsonl gets a JSON line as well
#                     (CLAUDE_RUN_RECORD names another file, or, empty, none)
#   CLAUDE_PGID_FILE  holds a process group while COMMAND runs. TERM to that group asks claude-run to end COMMAND and all it
#                     has started; KILL to it makes that quick. Neither cuts a token refresh short
#   CLAUDE_RUN        claude-run, where it is not on PATH
# Exported, every variable of claude-run counts (CLAUDE_RUN_WAIT ...).
#
# The lock. CLAUDE_EXTERNAL_LOCK, not empty, means exclusive. Else CLAUDE_RUN_LOCK or claude-run.toml say the mode, or a
# CLAUDE_RUN_LOCK_FILE of its own says that there is a lock. Where nobody says anything, none is taken.
#
# A factory whose lock is behind a switch keeps its call sites, the one in agent_run and the nudge alike: a caller that holds
# the lock is seen, and not waited for. Or they lose their flock, and become what they are without it:
#
#   -  if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
#   -    mkdir -p "$(dirname "$lock_file")"
#   -    output=$(cd "$run_dir" && ( flock -w 600 9 || exit 1; claude_run_with_watchdog claude "${args[@]}" ) 9>"$lock_file" 2>>"$LOGFILE") && rc=0 || rc=$?
#   -  else
#   -    output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?
#   -  fi
#   +  output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?
#
# and the nudge, `if` and `else` likewise:
#
#   +  output=$(cd "$run_dir" && claude_run_with_watchdog claude -p "$nudge" --resume "$_AGENT_SESSION_ID" ... 2>>"$LOGFILE") && nudge_rc=0 || nudge_rc=$?
#
# A factory that locks every call says so in the same line, until claude-run.toml does (`claude-run mode exclusive`):
#
#   -  output=$(cd "$run_dir" && ( flock -w 600 9 || exit 1;
#   -    claude_run_with_watchdog claude "${args[@]}" ) 9>"$HOME/.claude/session.lock" 2>>"$LOGFILE")
#   +  output=$(cd "$run_dir" && CLAUDE_EXTERNAL_LOCK=1 claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE")
#
# Another harness has a lock of its backend, not of claude's login:
#
#   CLAUDE_RUN_LOCK=exclusive CLAUDE_RUN_LOCK_FILE=/srv/locks/llama-1.lock claude_run_with_watchdog dsh --profile headless "$prompt"

# The claude-run that this file belongs to.
CLAUDE_RUN_SDK_VERSION=0.1.0

# A subshell: what is exported and redirected here is not so for the caller.
claude_run_with_watchdog() (
  program=${CLAUDE_RUN:-claude-run}
  for name in CLAUDE_TIMEOUT CLAUDE_IDLE_GRACE CLAUDE_EXTERNAL_LOCK LOG_AGENT; do
    [ -z "${!name:-}" ] || export "${name?}"
  done
  # A log that cannot be written is no reason not to run.
  if [ -n "${LOGFILE:-}" ] && { : >>"$LOGFILE"; } 2>/dev/null; then
    exec 2>>"$LOGFILE"
    if [ -f "$LOGFILE" ]; then
      export CLAUDE_RUN_LOG="${CLAUDE_RUN_LOG-$LOGFILE}" CLAUDE_RUN_RECORD="${CLAUDE_RUN_RECORD-$LOGFILE.runs.jsonl}"
    fi
  elif [ -n "${LOGFILE:-}" ]; then
    echo "claude_run_with_watchdog: cannot write LOGFILE $LOGFILE; messages come here" >&2
  fi
  version=$("$program" --version 2>/dev/null) || version=
  if [ -n "$version" ] && [[ "$version " != "claude-run $CLAUDE_RUN_SDK_VERSION "* ]]; then
    echo "claude_run_with_watchdog: agent-sdk.sh is of claude-run $CLAUDE_RUN_SDK_VERSION, $program is $version; install both from one package" >&2
  fi

  # With a mistake in its settings file it prints no settings here, and says so below.
  lock_origin='' limit=${CLAUDE_TIMEOUT:-2h}
  while read -r key value origin _; do
    case $key in
      lock) lock_origin=$origin ;;
      timeout) limit=${value%;} ;;
    esac
  done < <("$program" settings 2>/dev/null)
  [[ $limit == *[!0-9.]* ]] || limit+=s
  options=(--stdin null --redact "${CLAUDE_RUN_REDACT:-all}")
  if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
    options+=(--lock exclusive)
  elif [ "$lock_origin" = default ] && [ -z "${CLAUDE_RUN_LOCK_FILE:-}" ]; then
    options+=(--lock pass-through)
  fi

  SECONDS=0 code=0
  if [ -z "${CLAUDE_PGID_FILE:-}" ]; then
    "$program" "${options[@]}" -- "$@" </dev/null || code=$?
  else
    coproc CLAUDE_RUN_GROUP { claude_run_process_group 2>/dev/null; }
    group=$CLAUDE_RUN_GROUP_PID
    exec {to}>&"${CLAUDE_RUN_GROUP[1]}" {from}<&"${CLAUDE_RUN_GROUP[0]}"
    (
      echo "$BASHPID" >&"$to"
      read -r _ <&"$from" || :
      exec "$program" "${options[@]}" -- "$@" </dev/null {to}>&- {from}<&-
    ) || code=$?
    (trap '' PIPE && echo ended >&"$to") 2>/dev/null || :
    wait "$group" || :
    rm -f -- "$CLAUDE_PGID_FILE"
  fi

  ended_by_limit=0
  [ "$code" -ne 124 ] || ended_by_limit=124
  line="watchdog: timeout_exit=$ended_by_limit elapsed_wall=${SECONDS}s limit=$limit exit=$code"
  if declare -F log >/dev/null; then
    log "$line" >&2 || :
  elif [ -n "${LOGFILE:-}" ]; then
    echo "$line" >&2
  fi
  exit "$code"
)

# The process group of CLAUDE_PGID_FILE. It has one member, which hands on what it is sent and stays until the run has ended.
# claude-run is no part of it: a caller that sends TERM, and a second later KILL, would otherwise kill the watchdog while that
# spares a token refresh or ends the last tools. stdin: the pid of claude-run, then a word when that has ended.
claude_run_process_group() {
  local run member
  read -r run || return
  set -m # a job of its own is a process group of its own
  {
    trap 'kill -TERM "$run"' HUP INT QUIT TERM
    # A trapped signal interrupts the read; the end of stdin without a word means that our caller was killed.
    until read -r _; do [ $? -gt 128 ] || exit 1; done
  } &
  member=$!
  echo "$member" >"$CLAUDE_PGID_FILE"
  echo ready
  wait "$member" || kill -TERM "$run"
}
