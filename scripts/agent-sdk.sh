# shellcheck shell=bash
# claude_run_with_watchdog on claude-run: sourced by the factory's lib/agent-sdk.sh in place of its own function.
# Needs bash 4.4 or later and claude-run; no other tool but rm.
#
#   claude_run_with_watchdog COMMAND [ARGS...]        claude, or another harness: a program, not a shell function
#
# Runs COMMAND under claude-run: lock, hard limit, result grace, nothing left behind. It
# - prints what COMMAND prints on stdout, with secrets masked (unless CLAUDE_RUN_REDACT or claude-run.toml say otherwise), and
#   nothing else;
# - returns COMMAND's exit code, or one of claude-run's: 75 lock not free, 124 limit, 125 own failure, 126 and 127 COMMAND
#   cannot be run or is not there, 128+N;
# - gives COMMAND /dev/null to read: the stdin of a caller's `while read` loop is the caller's.
#
# Variables, exported or not: CLAUDE_TIMEOUT, CLAUDE_IDLE_GRACE, CLAUDE_EXTERNAL_LOCK, CLAUDE_CONFIG_DIR, LOG_AGENT, all of claude-run's
# (CLAUDE_RUN_WAIT ...), and
#   LOGFILE           gets COMMAND's stdout and stderr line by line as they come, masked, what claude-run says, and at the end
#                     one line that tells how the run ended (timeout_exit is 124 for exit code 124, else 0):
#                       [2026-11-26 01:32:04 UTC] watchdog: timeout_exit=0 elapsed_wall=12s limit=2h exit=0
#                     $LOGFILE.runs.jsonl gets a JSON line as well (CLAUDE_RUN_RECORD names another file, or, empty, none),
#                     unless LOGFILE is /dev/stderr or the like.
#                     A FIFO needs a reader for as long as the run lasts: once it is full, COMMAND waits
#   CLAUDE_PGID_FILE  holds a process group while COMMAND runs. TERM to that group asks claude-run to end COMMAND and all it
#                     has started; KILL to it makes that quick. Neither cuts a token refresh short. It is the way to end a run
#                     from outside: TERM to a shell that waits for this function waits, too
#   CLAUDE_RUN        claude-run, where it is not on PATH
#
# For a `bash -c` of its own, all of it is exported: export -f claude_run_with_watchdog claude_run_in_subshell claude_run_process_group,
# and CLAUDE_RUN_SDK_VERSION.
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

# Run, not sourced, it says what it is.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit
fi

# The claude-run that this file belongs to.
CLAUDE_RUN_SDK_VERSION=0.2.0

claude_run_with_watchdog() {
  # A subshell: what is exported and redirected there is not so for the caller.
  (claude_run_in_subshell "$@")
}

# Names begin with _cr_: any other may be a variable of the caller's that claude is to see, or that is read-only, as IFS and SECONDS can
# be: so nothing here depends on separators.
claude_run_in_subshell() {
  # Whatever the caller has set: options, traps, signals that its exit path ignores. -a would export names of ours to
  # claude, -k makes `export` print the environment, -x would trace the command line into the log, unmasked.
  set +aeCETkvx
  trap - DEBUG ERR RETURN
  true >&2 || exec 2>/dev/null # closed, it cannot be copied below
  # claude-run is in our group, gets what that is sent as well, and has to be waited for. It starts with none of these traps.
  trap : HUP QUIT TERM
  [[ $(trap -p XFSZ) == *"''"* ]] || trap : XFSZ # ignored, it stays so for COMMAND
  _cr_interrupted=
  trap _cr_interrupted=1 INT
  _cr_program=${CLAUDE_RUN:-claude-run}
  for _cr_name in CLAUDE_TIMEOUT CLAUDE_IDLE_GRACE CLAUDE_EXTERNAL_LOCK CLAUDE_CONFIG_DIR LOG_AGENT "${!CLAUDE_RUN_@}"; do
    [[ -z ${!_cr_name:-} || $_cr_name == CLAUDE_RUN_SDK* ]] || export "${_cr_name?}"
  done
  # A log or a group file that cannot be written is no reason not to run.
  _cr_log=''
  if [ -p "${LOGFILE:-}" ] && [ ! "$LOGFILE" -ef /dev/stdout ] && [ ! "$LOGFILE" -ef /dev/stderr ]; then
    # Once, and for both: to open a FIFO for writing alone waits for its reader, to which the end of a probe is the end.
    [ -r "$LOGFILE" ] && [ -w "$LOGFILE" ] && exec 2<>"$LOGFILE" && _cr_log=/dev/stderr
  elif [ -n "${LOGFILE:-}" ] && (umask 077 && : >>"$LOGFILE") 2>/dev/null; then
    _cr_log=$LOGFILE
    exec 2>>"$LOGFILE"
    if [ -f "$LOGFILE" ]; then
      export CLAUDE_RUN_LOG="${CLAUDE_RUN_LOG-$LOGFILE}"
      # /dev/stderr may be a file, and nothing is to be made beside it.
      [[ $LOGFILE == /dev/std* || $LOGFILE == /dev/fd/* || $LOGFILE == /proc/* ]] || export CLAUDE_RUN_RECORD="${CLAUDE_RUN_RECORD-$LOGFILE.runs.jsonl}"
    fi
  fi
  if [ -n "${LOGFILE:-}" ] && [ -z "$_cr_log" ]; then
    echo "claude_run_with_watchdog: cannot write LOGFILE $LOGFILE; messages come here" >&2
  fi
  _cr_group_file=${CLAUDE_PGID_FILE:-}
  # A FIFO or a device may have no end, or nobody at the other one.
  if [ -n "$_cr_group_file" ] && { { [ -e "$_cr_group_file" ] && [ ! -f "$_cr_group_file" ]; } || ! : >>"$_cr_group_file"; } 2>/dev/null; then
    echo "claude_run_with_watchdog: cannot write CLAUDE_PGID_FILE $_cr_group_file; nobody can end the run by it" >&2
    _cr_group_file=''
  fi
  if ! type -t "$_cr_program" >/dev/null; then
    echo "claude_run_with_watchdog: cannot find $_cr_program; install claude-run, or name it with CLAUDE_RUN" >&2
  fi
  _cr_version=$("$_cr_program" --version 2>/dev/null)
  if [ -n "$_cr_version" ] && [[ "$_cr_version " != "claude-run $CLAUDE_RUN_SDK_VERSION "* ]]; then
    echo "claude_run_with_watchdog: agent-sdk.sh is of claude-run $CLAUDE_RUN_SDK_VERSION, $_cr_program is $_cr_version; install both from one package" >&2
  fi

  # With a mistake in its settings file it prints no settings here, and says so below.
  _cr_options=(--stdin null) _cr_lock='' _cr_redact=default _cr_limit=${CLAUDE_TIMEOUT:-2h}
  mapfile -t _cr_settings < <("$_cr_program" settings 2>/dev/null)
  for _cr_line in "${_cr_settings[@]}"; do # NAME, VALUE, ORIGIN, with two blanks or more between them
    case $_cr_line in
      'lock '*'  default') _cr_lock=default ;;
      'redact '*'  default') ;;
      'redact '*) _cr_redact='' ;;
      'timeout '*) [[ $_cr_line =~ ^timeout\ +([^\ ]+(\ [^\ ]+)*) ]] && _cr_limit=${BASH_REMATCH[1]%%;*} ;;
    esac
  done
  [ "$_cr_redact" != default ] || _cr_options+=(--redact all)
  if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
    _cr_options+=(--lock exclusive)
  elif [ "$_cr_lock" = default ] && [ -z "${CLAUDE_RUN_LOCK_FILE:-}" ]; then
    _cr_options+=(--lock pass-through)
  fi

  printf -v _cr_began '%(%s)T' -1
  _cr_code=0
  # claude-run ends by the signal that ended COMMAND; bash's own word on that is for nobody.
  exec {_cr_err}>&2 || exit 125
  if [ -z "$_cr_group_file" ]; then
    { "$_cr_program" "${_cr_options[@]}" -- "$@" </dev/null 2>&"$_cr_err" {_cr_err}>&-; } 2>/dev/null || _cr_code=$?
  else
    { coproc CLAUDE_RUN_GROUP { claude_run_process_group; }; } 2>/dev/null
    _cr_group=$CLAUDE_RUN_GROUP_PID
    exec {_cr_to}>&"${CLAUDE_RUN_GROUP[1]}" {_cr_from}<&"${CLAUDE_RUN_GROUP[0]}" || exit 125
    {
      (
        echo "$BASHPID" >&"$_cr_to"
        read -r _ <&"$_cr_from"
        exec "$_cr_program" "${_cr_options[@]}" -- "$@" </dev/null 2>&"$_cr_err" {_cr_err}>&- {_cr_to}>&- {_cr_from}<&-
      )
    } 2>/dev/null || _cr_code=$?
    (trap '' PIPE && echo ended >&"$_cr_to") 2>/dev/null
    wait "$_cr_group"
  fi

  if [ -n "$_cr_log" ]; then
    _cr_limit=${_cr_limit// /}
    [[ $_cr_limit =~ ^[0-9.]+$ ]] && _cr_limit+=s
    [[ $_cr_limit =~ ^[0-9a-z.]+$ ]] || _cr_limit='?'
    _cr_expired=0
    [ "$_cr_code" -ne 124 ] || _cr_expired=124
    printf -v _cr_now '%(%s)T' -1
    # A TZ that cannot be set ends a shell in POSIX mode.
    (TZ=UTC printf '[%(%Y-%m-%d %H:%M:%S UTC)T] watchdog: timeout_exit=%d elapsed_wall=%ds limit=%s exit=%d\n' \
      "$_cr_now" "$_cr_expired" "$((_cr_now - _cr_began))" "$_cr_limit" "$_cr_code" >>"$_cr_log")
  fi
  # By the signal itself, as claude-run: bash ends its own loop upon Ctrl-C only if INT has ended what it waits for. Of a death by
  # any other, it would print a line. A COMMAND may exit with 130 by itself.
  if [ "$_cr_code" -eq 130 ] && [ -n "$_cr_interrupted" ]; then
    trap - INT
    kill -INT "$BASHPID"
  fi
  exit "$_cr_code"
}

# The process group of CLAUDE_PGID_FILE. It has one member, which hands on what it is sent and stays until the run has ended.
# claude-run is no part of it: a caller that sends TERM, and a second later KILL, would otherwise kill the watchdog while that
# spares a token refresh or ends the last tools. stdin: the pid of claude-run, then a word when that has ended.
claude_run_process_group() {
  trap '' HUP INT QUIT TERM # for its caller's group; the member has its own
  mapfile -t -n 1 _cr_lines # read would cut off a digit that IFS has
  _cr_run=${_cr_lines[0]-}
  [ -n "$_cr_run" ] || return
  set -m # a job of its own is a process group of its own
  {
    trap 'kill -TERM "$_cr_run"' HUP INT QUIT TERM
    # A trapped signal interrupts the read; the end of stdin without a word means that our caller was killed.
    until read -r _; do [ $? -gt 128 ] || exit 1; done
  } >/dev/null &
  _cr_member=$!
  echo "$_cr_member" >"$_cr_group_file"
  echo ready
  wait "$_cr_member" || kill -TERM "$_cr_run"
  # Another run may have written its own meanwhile.
  [ "$(<"$_cr_group_file")" != "$_cr_member" ] || rm -f -- "$_cr_group_file"
}
