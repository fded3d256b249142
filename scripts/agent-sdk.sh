# shellcheck shell=bash
# To be sourced by the factory's lib/agent-sdk.sh, in place of its own claude_run_with_watchdog.
#
#   claude_run_with_watchdog claude [ARGS...]
#
# runs claude under claude-run: session lock, hard limit, result grace, nothing left behind. stdout is claude's and nothing
# else. It returns claude's own exit code, or one of claude-run's: 75 lock not free, 124 hard limit, 125 own failure, 126/127
# claude cannot be run / was not found, 128+N.
#
# If LOGFILE is set, all that claude prints on stdout and stderr is appended to it line by line as it comes, with secrets
# masked, and so is what claude-run says; and $LOGFILE.runs.jsonl gets one line a run (CLAUDE_RUN_RECORD names another file,
# or, empty, none). CLAUDE_TIMEOUT, CLAUDE_IDLE_GRACE, CLAUDE_EXTERNAL_LOCK and LOGFILE count whether they are exported or
# not; every variable of claude-run (CLAUDE_RUN_WAIT …) counts as well. CLAUDE_RUN names the binary where it is not on PATH.
#
# The two call sites lose their flock, because claude-run takes the same lock itself:
#
#   - output=$(cd "$run_dir" && ( flock -w 600 9 || exit 1;
#   -   claude_run_with_watchdog claude "${args[@]}" ) 9>"$HOME/.claude/session.lock" 2>>"$LOGFILE")
#   + output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}") && rc=0 || rc=$?
#
# A call site that still has its flock works, too: claude-run sees that its caller holds the lock.

claude_run_with_watchdog() {
  # A subshell: what is exported and redirected here is not so for the caller.
  (
    for name in CLAUDE_TIMEOUT CLAUDE_IDLE_GRACE CLAUDE_EXTERNAL_LOCK; do
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
    exec "${CLAUDE_RUN:-claude-run}" -- "$@"
  )
}
