#!/usr/bin/env bash
# What claude-run costs, next to flock(1), timeout(1), tini(1) and the bash block it replaces: all in one run, on one
# machine.
#
#   scripts/bench.sh [--quick] [--only PARTS] [--json FILE]     FILE is target/bench.json if not given
#
# PARTS are some of overhead,hand_offs,memory,records,slots,beside,dead,crowd,lines,fresh_token,race,output, with commas between; then
# there are medians and no verdicts.
# It builds the release binary; CLAUDE_RUN_BIN names one to measure instead. --quick takes fewer and shorter samples.
# Everything runs in a temporary config dir. One line for each subject:
#
#   claude-run       claude-run COMMAND: session lock, hard limit, nothing left behind
#   claude-run:exec  claude-run --lock pass-through --timeout 0 --leftovers keep COMMAND: no lock, no watchdog, an exec
#   flock            flock FILE COMMAND
#   flock+timeout    flock FILE timeout 100 COMMAND
#   tini             tini -s -- COMMAND
#   timeout          timeout 100 COMMAND
#   bash             bash -c '( flock -w 600 9; timeout 100 COMMAND ) 9>FILE', with the start of bash itself
#
# The columns; overhead and hand-offs are medians:
#
#   overhead    wall time with COMMAND `true`, less that of `true` alone, in microseconds. Several rounds of all
#               subjects in turn, so that a load that comes and goes meets them all; the median is over all rounds' runs
#   of flock    that overhead as a multiple of flock's
#   memory      VmHWM of the process itself, in KiB: its peak resident memory so far, with shared libraries, without
#               children. Read while it waits for a lock that another holds, and while it runs a child that does nothing
#   hand-offs   256 processes are queued on one lock, as /proc/locks shows; its holder is killed; each then runs `true`.
#               256 divided by the seconds from the kill until the last has been reaped
#   wake-ups    voluntary and involuntary context switches of all its threads, from /proc, in 5 s (--quick: 2 s) of
#               waiting and of running a quiet child. A process that polls or ticks has some; one that sleeps in the
#               kernel has none
#
# Then what the books cost:
#
#   record       what a run that keeps its record and its line of history takes longer than one without a config dir, in
#                microseconds
#   status       wall time of `claude-run status --json` while 1,000 wait, in milliseconds
#
# Then slots, next to GNU sem:
#
#   free slot    what a run with --slots 4 takes longer than one without, while a slot is free, in microseconds
#   sem          wall time of `claude-run --slots 4 true`, as a multiple of that of `sem --fg -j 4 true`; and the same for 64 at
#                once on 4 slots, until the last has ended
#
# And what grows, each at three sizes, next to flock:
#
#   behind a block   CPU time of a waiter, in milliseconds, behind an old bash block whose flock(1) is gone, beside 0, 500 and 2,000
#                    other processes (--quick: 0, 100 and 500)
#   records          the same beside 0, 1,000 and 10,000 records of dead runs, each time as many of them
#   crowd            CPU time of a run in a crowd of 1, 16 and 128 that take turns, in milliseconds; flock+timeout likewise
#   status           CPU time of `claude-run status --json` on as many records, in milliseconds; jq(1) on the same files likewise
#   leftovers        time from the end of a child that leaves 100 tools behind to that of claude-run, in milliseconds, beside as many
#                    processes as above; the end of a PID namespace likewise, in which the kernel ends them
#   lines            CPU time for a GB of lines of 10, 100 and 1,000 bytes with --log, secrets masked there, in seconds; that of sed -uE
#                    likewise
#
# Then what `refresh` mode costs while the token is fresh:
#
#   fresh token  wall time of a run of 50 ms with --lock refresh, as a multiple of that with --lock pass-through
#   race         of 12 agents that start at once on an expired token, by scripts/race.sh: the most refreshes that they made in
#                any layout and under any of claude's own locks, and their wall time as a multiple of one alone, the median
#
# Then what reading along costs, with claude-run told to look for frames (--output-format stream-json), 1 GiB of them (--quick:
# 256 MiB), a pipe in front and a pipe behind:
#
#   relay        its throughput as a multiple of that of cat(1) in its place
#   log          its throughput with --log, secrets masked there, as a multiple of that of sed -uE with the expression of the
#                bash block it replaces, which gets 4 MiB of the same
#   long line    its VmHWM at the end of one line of 64 MiB, with --log
#   run          what a run that ends by itself costs more than without frames, in microseconds
#   return       from claude's last result to claude-run's end, in milliseconds; the bash block looked every 2 s
#
# A verdict for each target follows. A missed target is no failure: on a shared machine a timed assertion would fail by
# chance, and two runs can differ by a third. Exit code: 0 measured, 1 something could not be measured, 2 wrong usage or
# a program is missing.
set -euo pipefail
export LC_ALL=C # the decimal point of EPOCHREALTIME and of printf

fail() {
  echo "bench: $1" >&2
  exit "${2:-1}"
}

rounds=24 runs=40 hand_off_rounds=9 interval=5 mib=1024 json='' beside=(0 500 2000)
parts=(overhead hand_offs memory records slots beside dead crowd lines fresh_token race output) only=''
while [ $# -gt 0 ]; do
  case $1 in
    --quick) rounds=8 runs=15 hand_off_rounds=2 interval=2 mib=256 beside=(0 100 500) ;;
    --json)
      json=$(realpath -m -- "${2-}" 2>/dev/null) || fail "--json needs a FILE" 2
      shift
      ;;
    --only)
      only=${2-}
      shift
      ;;
    -h | --help) exec sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
    *) fail "unknown argument $1 (see --help)" 2 ;;
  esac
  shift
done

read -ra chosen <<<"${only//,/ }"
for part in "${chosen[@]}"; do
  [[ " ${parts[*]} " = *" $part "* ]] || fail "there is no part $part; there are ${parts[*]}" 2
done

ensure_programs() {
  local pair missing=() # PROGRAM:PACKAGE
  for pair in hyperfine:hyperfine tini:tini flock:util-linux timeout:coreutils sem:parallel jq:jq; do
    type -P "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$EUID" = 0 ] || fail "missing, by the names of their Debian packages: ${missing[*]}" 2
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >&2 ||
    fail "cannot install ${missing[*]}" 2
}

# Runs a command in the background, as a job with a process group of its own.
start() {
  set -m
  "$@" </dev/null >>messages 2>&1 &
  set +m
}

# Ends the jobs that are still there.
stop() {
  local signal group end
  for signal in TERM KILL; do
    for group in $(jobs -pr); do kill -s "$signal" -- "-$group" || true; done
    end=$((SECONDS + 10))
    while [ -n "$(jobs -pr)" ] && ((SECONDS < end)); do sleep 0.02; done
  done
} 2>/dev/null # bash reports every job that a signal ended

# poll_until WHAT COMMAND...: until COMMAND succeeds.
poll_until() {
  local end=$((SECONDS + 60))
  until "${@:2}"; do
    ((SECONDS < end)) || fail "not within 60 s: $1; last messages: $(tail -n 5 messages)"
    sleep 0.02
  done
}

# Has a process hold session.lock. One that lives: in a container, /proc/locks hides the locks whose taker is gone.
hold() {
  start flock --no-fork session.lock sleep infinity
  holder=$!
  poll_until "the holder has the lock" find_lock
}

# What /proc/locks calls session.lock: major:minor:inode.
find_lock() {
  lock=$(awk -v pid="$holder" '$2 == "FLOCK" && $5 == pid { print $6 }' /proc/locks)
  [ -n "$lock" ]
}

# queued N: exactly N processes wait for session.lock.
queued() { [ "$(grep -c -e "-> FLOCK .* $lock " /proc/locks)" = "$1" ]; }

# overhead ROUND: each round starts with another subject, since the place in the row counts, too.
overhead() {
  local true flock timeout subjects count at row=()
  true=$(type -P true) flock=$(type -P flock) timeout=$(type -P timeout)
  subjects=(
    true "$true"
    claude-run "bin/claude-run $true"
    claude-run:exec "bin/claude-run --lock pass-through --timeout 0 --leftovers keep $true"
    flock "$flock session.lock $true"
    flock+timeout "$flock session.lock $timeout 100 $true"
    tini "$(type -P tini) -s -- $true"
    timeout "$timeout 100 $true"
    bash "$BASH -c '( flock -w 600 9; timeout 100 $true ) 9>session.lock'"
  )
  count=$((${#subjects[@]} / 2))
  for ((at = $1; at < $1 + count; at++)); do
    row+=(-n "${subjects[at % count * 2]}" "${subjects[at % count * 2 + 1]}")
  done
  hyperfine -N --style none --warmup 3 --runs "$runs" --export-json times.json "${row[@]}" >>messages 2>&1 ||
    fail "hyperfine: $(tail -n 5 messages)"
  jq -r '.results[] | "\(.command) time_us \(.times[] * 1e6)"' times.json >>samples
}

# hand_offs SUBJECT COMMAND...
hand_offs() {
  local count=256 waiters=() pid begin
  hold
  while [ ${#waiters[@]} -lt $count ]; do
    start "${@:2}"
    waiters+=($!)
  done
  poll_until "$count times $1 wait" queued $count
  begin=${EPOCHREALTIME/./}
  kill "$holder"
  for pid in "${waiters[@]}"; do
    wait "$pid" || fail "$1 ended with $?; last messages: $(tail -n 5 messages)"
  done
  echo "$1 hand_offs_per_s $((count * 1000000 / (${EPOCHREALTIME/./} - begin)))" >>samples
}

switches() { awk '/ctxt_switches/ { sum += $2 } END { print sum }' "/proc/$1"/task/*/status; }

settled() { [ "$(switches "$1")" = "$(sleep 0.1 && switches "$1")" ]; }

# quiet SUBJECT COMMAND...: COMMAND supervises a child that does nothing.
quiet() {
  # shellcheck disable=SC2016 # for the inner shell
  start "${@:2}" sh -c 'echo started >"$1"; exec sleep infinity' sh "$1.child"
  pids["$1 running"]=$!
  poll_until "$1 runs its child" test -s "$1.child"
}

memory_and_wake_ups() {
  local -A pids before
  local subject state key pid
  hold
  start bin/claude-run true
  pids["claude-run waiting"]=$!
  start flock session.lock true
  pids["flock waiting"]=$!
  poll_until "claude-run and flock wait" queued 2
  quiet claude-run bin/claude-run --lock-file claude-run.lock
  quiet flock flock flock.lock
  quiet tini tini -s --
  quiet timeout timeout 100
  for key in "${!pids[@]}"; do poll_until "$key has settled" settled "${pids[$key]}"; done
  for key in "${!pids[@]}"; do before[$key]=$(switches "${pids[$key]}"); done
  sleep "$interval" # what is measured, no synchronisation
  for key in "${!pids[@]}"; do
    read -r subject state <<<"$key"
    pid=${pids[$key]}
    echo "$subject wake_ups_$state $(($(switches "$pid") - before[$key]))"
    echo "$subject memory_kib_$state $(awk '$1 == "VmHWM:" { print $2 }' "/proc/$pid/status")"
  done >>samples
}

# What keeping a record and a line of history costs, against a run that has no config dir to keep them in; and status, on a
# queue of 1,000.
records() {
  local round count=1000 started timed
  timed=(hyperfine -N --style none --warmup 3 --export-json times.json)
  for ((round = 0; round < rounds; round++)); do
    "${timed[@]}" --runs "$runs" -n kept "env -u CLAUDE_CONFIG_DIR bin/claude-run -q --lock-file l true" \
      -n unkept "env -u CLAUDE_CONFIG_DIR -u HOME bin/claude-run -q --lock-file l true" >>messages 2>&1 ||
      fail "hyperfine: $(tail -n 5 messages)"
    jq -r '.results[] | "\(.command) time_us \(.times[] * 1e6)"' times.json >>samples
  done
  stop
  hold
  for ((started = 0; started < count; started++)); do start bin/claude-run true; done
  poll_until "$count wait" queued $count
  poll_until "status counts $count" sh -c "bin/claude-run status --json | jq -e '.waiting | length == $count' >/dev/null"
  "${timed[@]}" --runs 20 "bin/claude-run status --json" >>messages 2>&1 || fail "hyperfine: $(tail -n 5 messages)"
  jq -r '.results[] | "status time_us \(.times[] * 1e6)"' times.json >>samples
  stop
}

fresh_token() {
  local round
  mkdir login
  printf '{"claudeAiOauth":{"accessToken":"a","refreshToken":"r","expiresAt":%d}}' $((($(date +%s) + 28800) * 1000)) \
    >login/.credentials.json
  for ((round = 0; round < 5; round++)); do
    hyperfine -N --style none --warmup 3 --runs "$runs" --export-json times.json \
      -n refresh "bin/claude-run --config-dir login --lock refresh sleep 0.05" \
      -n pass-through "bin/claude-run --config-dir login --lock pass-through sleep 0.05" >>messages 2>&1 ||
      fail "hyperfine: $(tail -n 5 messages)"
    jq -r '.results[] | "\(.command) time_us \(.times[] * 1e6)"' times.json >>samples
  done
}

slots() {
  local run="bin/claude-run -q --lock pass-through" round
  for ((round = 0; round < rounds / 4; round++)); do
    hyperfine -N --style none --warmup 3 --runs "$runs" --export-json times.json \
      -n unslotted "$run true" -n slotted "$run --slots 4 true" -n sem "sem --fg -j 4 --id bench true" >>messages 2>&1 ||
      fail "hyperfine: $(tail -n 5 messages)"
    {
      jq -r '.results[] | "\(.command) time_us \(.times[] * 1e6)"' times.json
      echo "slotted crowd_per_s $(timed 64 at_once 64 bin/claude-run -q --lock pass-through --slots 4 true)"
      echo "sem crowd_per_s $(timed 64 at_once 64 sem --fg -j 4 --id bench true)"
    } >>samples
  done
}

# at_once N COMMAND...: N times at once, to the end of the last.
at_once() {
  local jobs=() pid
  while [ ${#jobs[@]} -lt "$1" ]; do
    start "${@:2}"
    jobs+=($!)
  done
  for pid in "${jobs[@]}"; do wait "$pid" || true; done
}

# cpu COMMAND...: its CPU time and that of its children, in milliseconds; its exit code is of no account.
cpu() {
  local TIMEFORMAT='%U %S' spent
  spent=$({ time "$@" >/dev/null 2>>messages || true; } 2>&1)
  awk '{ printf "%.0f", ($1 + $2) * 1000 }' <<<"$spent"
}

# crowd_cpu N COMMAND...: CPU time of each of N at once on one lock, in milliseconds.
crowd_cpu() {
  local spent
  # shellcheck disable=SC2016 # for the inner shell
  spent=$(cpu "$BASH" -c 'for ((i = 0; i < $0; i++)); do "$@" & done; wait' "$@")
  awk -v all="$spent" -v count="$1" 'BEGIN { printf "%.2f", all / count }'
}

# The curves: each line of samples has the size in its measure.
beside() {
  local count jobs=()
  for count in "${beside[@]}"; do
    while [ ${#jobs[@]} -lt "$count" ]; do
      sleep 600 &
      jobs+=($!)
    done
    behind_a_block "$count"
    leftovers "$count"
  done
  if [ ${#jobs[@]} -gt 0 ]; then
    kill "${jobs[@]}"
    wait "${jobs[@]}" || true
  fi 2>/dev/null
}

dead() {
  local count
  mkdir -p claude-run/runs
  for count in 0 1000 10000; do on_records "$count"; done
}

crowd() {
  local count at
  for count in 1 16 128; do
    for at in 1 2 3; do
      echo "claude-run crowd_cpu_ms@$count $(crowd_cpu "$count" bin/claude-run -q true)"
      echo "flock+timeout crowd_cpu_ms@$count $(crowd_cpu "$count" flock session.lock timeout 100 true)"
    done >>samples
  done
}

lines() {
  local count
  for count in 10 100 1000; do lines_of "$count"; done
}

behind_a_block() {
  local at
  # shellcheck disable=SC2016 # for the inner shell
  start "$BASH" -c '( flock 9; sleep 600 ) 9>session.lock'
  holder=$!
  poll_until "the block has the lock" sh -c '! flock -n session.lock true'
  for at in 1 2 3; do
    echo "claude-run block_cpu_ms@$1 $(cpu bin/claude-run --wait 0.5 true)"
    echo "flock block_cpu_ms@$1 $(cpu flock -w 0.5 session.lock true)"
  done >>samples
  kill -- "-$holder"
  wait "$holder" || true
}

# shellcheck disable=SC2016 # for the inner shells
leftovers() {
  local at leave='for ((i = 0; i < 100; i++)); do setsid sleep 600 & done; sleep 0.2; echo ${EPOCHREALTIME/./} >left.time'
  for at in 1 2 3; do
    bin/claude-run -q --lock pass-through "$BASH" -c "$leave" >>messages 2>&1
    echo "claude-run leftovers_ms@$1 $(((${EPOCHREALTIME/./} - $(cat left.time)) / 1000))"
    unshare -pf "$BASH" -c "$leave" >>messages 2>&1 || continue # where that is not allowed
    echo "namespace leftovers_ms@$1 $(((${EPOCHREALTIME/./} - $(cat left.time)) / 1000))"
  done >>samples
}

on_records() {
  local at
  hold
  for at in 1 2 3; do
    # As of runs that were killed: the beginning of a record counts as one.
    awk -v count="$1" 'BEGIN { for (name = 1; name <= count; name++) {
      run = 4194000 + name "-" name; file = "claude-run/runs/" run ".json"; printf "{\"run\":\"%s\"", run >file; close(file) } }'
    echo "claude-run records_cpu_ms@$1 $(cpu bin/claude-run --wait 0.5 true)"
    echo "flock records_cpu_ms@$1 $(cpu flock -w 0.5 session.lock true)"
    echo "jq status_cpu_ms@$1 $(cpu find claude-run/runs -name '*.json' -exec jq -R length {} +)"
    echo "claude-run status_cpu_ms@$1 $(cpu bin/claude-run status --json)" # which removes them
  done >>samples
  stop
  find claude-run/runs -name '41*.json' -delete
}

lines_of() {
  local length=$1 bytes=$((mib * 65536)) at
  head -c "$bytes" < <(yes "$(head -c $((length - 1)) /dev/zero | tr '\0' x)") >many
  head -c $((bytes / 16)) many >few
  for at in 1 2 3; do
    : >line.log
    echo "claude-run lines_s_a_gb@$length $(a_gb "$bytes" "$(cpu bin/claude-run -q --lock pass-through --log line.log cat many)")"
    echo "sed lines_s_a_gb@$length $(a_gb $((bytes / 16)) "$(cpu sed -uE "$masking" few)")"
  done >>samples
  rm many few line.log
}

# a_gb BYTES MILLISECONDS: seconds for 10^9 bytes.
a_gb() { awk -v bytes="$1" -v ms="$2" 'BEGIN { printf "%.2f", ms * 1e6 / bytes }'; }

# What the bash block masked.
masking='s/((FORGE|VAULT|GH|GITHUB|CLAW|CLAUDE|ANTHROPIC)[A-Z_]*(TOKEN|PASS|KEY|SECRET)[A-Z_]*=)[^[:space:]"]+/\1***/g
  s/sk-ant-[A-Za-z0-9_-]+|(ghp_|github_pat_)[A-Za-z0-9_]+/***/g'

# timed FACTOR COMMAND...: FACTOR / seconds, on stdout.
timed() {
  local begin=${EPOCHREALTIME/./}
  "${@:2}"
  echo $(($1 * 1000000 / (${EPOCHREALTIME/./} - begin)))
}

# shellcheck disable=SC2016 # for the inner shells
output() {
  local round mib=$1 framed=(--output-format stream-json) name
  local reads=(bin/claude-run --lock pass-through)
  jq -nc 'range(600) | {type: "assistant", message: {id: "msg_\(.)", role: "assistant", content: [{type: "text",
    text: ("lorem ipsum dolor sit amet " * (. % 120 + 1))}]}, session_id: "bench", parent_tool_use_id: null}' >block
  head -c 1048576 block | sed '$d' >frames # whole lines
  for ((round = 0; round < mib; round++)); do cat frames; done >many
  for ((round = 0; round < 4; round++)); do cat frames; done >few
  size() { stat -c %s "$1"; }
  through_cat() { sh -c 'exec cat many' | cat | cat >/dev/null; }
  through_relay() { "${reads[@]}" sh -c 'exec cat many' sh "${framed[@]}" | cat >/dev/null; }
  through_sed() {
    sed -uE "$masking" <few >few.masked
  }
  through_log() {
    : >many.log
    "${reads[@]}" --log many.log sh -c 'exec cat many' sh "${framed[@]}" >/dev/null
  }
  for round in 1 2 3 4 5; do
    echo "cat bytes_per_s $(timed "$(size many)" through_cat)"
    echo "claude-run bytes_per_s $(timed "$(size many)" through_relay)"
    echo "claude-run logged_per_s $(timed "$(size many)" through_log)"
  done >>samples
  echo "sed bytes_per_s $(timed "$(size few)" through_sed)" >>samples
  "${reads[@]}" --log line.log sh -c 'head -c 67108864 /dev/zero | tr "\0" x; grep VmHWM: /proc/$PPID/status >&2' \
    sh "${framed[@]}" 2>peak >/dev/null
  echo "claude-run long_line_kib $(awk '{ print $2 }' peak)" >>samples
  rm many* line.log
  for round in 1 2 3 4 5; do
    hyperfine -N --style none --warmup 3 --runs "$runs" --export-json times.json \
      -n plain "${reads[*]} true" -n framed "${reads[*]} true ${framed[*]}" >>messages 2>&1 || fail "hyperfine: $(tail -n 5 messages)"
    jq -r '.results[] | "\(.command) time_us \(.times[] * 1e6)"' times.json >>samples
    "${reads[@]}" sh -c 'echo "{\"type\":\"result\",\"is_error\":false}"; echo ${EPOCHREALTIME:-$(date +%s%6N)} >result.time' \
      sh "${framed[@]}" >/dev/null
    name=$(cat result.time)
    echo "claude-run return_ms $(((${EPOCHREALTIME/./} - ${name/./}) / 1000))" >>samples
  done
}

# Its table has the columns mode, layout, lock, refreshes, invalid_grant, failed, clean, all ended, of alone, at once.
race() {
  local rows=(refresh)
  [ "$mib" = 1024 ] || rows=("refresh shared none")
  HOME=$own_home CLAUDE_RUN_BIN=$work/bin/claude-run "$race_script" "${rows[@]}" >race.table || fail "race.sh: $(tail -n 5 race.table)"
  awk -F ' *[|] *' '$2 == "refresh" { if ($5 > posts) posts = $5; print "claude-run race_of_alone", $10 }
    END { print "claude-run race_posts", posts }' race.table >>samples
}

# The samples, lines of SUBJECT MEASURE VALUE, as JSON: the medians of each subject.
medians() {
  jq -nR 'def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    {subjects: (reduce ([inputs / " "] | group_by(.[:2])[]) as $group
      ({}; .[$group[0][0]][$group[0][1]] = ($group | map(.[2] | tonumber) | median)))}'
}

# These medians and the targets, as JSON.
summary() {
  medians <samples | jq --arg version "$(bin/claude-run --version)" --arg kernel "$(uname -srm)" --argjson cpus "$(nproc)" \
    --arg beside "${beside[-1]}" '
    .subjects | .true.time_us as $true | .[] |= if .time_us then .overhead_us = .time_us - $true else . end
    | .flock.overhead_us as $flock | .[] |= if .time_us then .overhead_of_flock = .overhead_us / $flock else . end
    | ."claude-run" as $ours
    | { version: $version, kernel: $kernel, cpus: $cpus, subjects: ., targets: [
        ["overhead, as a multiple of flock", $ours.overhead_of_flock, "<=", 1],
        ["overhead, as a multiple of flock+timeout", $ours.overhead_us / ."flock+timeout".overhead_us, "<=", 0.45],
        ["overhead, as a multiple of tini", $ours.overhead_us / .tini.overhead_us, "<=", 1],
        ["overhead of :exec, as a multiple of tini", ."claude-run:exec".overhead_us / .tini.overhead_us, "<=", 1],
        ["memory while waiting, KiB", $ours.memory_kib_waiting, "<=", 4096],
        ["memory while running, KiB", $ours.memory_kib_running, "<=", 4096],
        ["hand-offs, as a multiple of flock", $ours.hand_offs_per_s / .flock.hand_offs_per_s, ">=", 0.9],
        ["wake-ups while waiting", $ours.wake_ups_waiting, "<=", 0],
        ["wake-ups while running", $ours.wake_ups_running, "<=", 0],
        ["record and history, us more", .kept.time_us - .unkept.time_us, "<=", 200],
        ["status on 1,000 records, ms", .status.time_us / 1000, "<=", 50],
        ["free slot, us more", .slotted.time_us - .unslotted.time_us, "<=", 150],
        ["start with a slot, as a multiple of sem", .slotted.time_us / .sem.time_us, "<=", 0.1],
        ["64 on 4 slots, as a multiple of sem", .slotted.crowd_per_s / .sem.crowd_per_s, ">=", 4],
        ["waiter behind a block, most beside, ms CPU", $ours["block_cpu_ms@\($beside)"], "<=", 5],
        ["waiter beside 10,000 records, ms CPU", $ours["records_cpu_ms@10000"], "<=", 4],
        ["status on 10,000 records, ms CPU", $ours["status_cpu_ms@10000"], "<=", 100],
        ["100 leftovers, most beside, ms", $ours["leftovers_ms@\($beside)"], "<=", 200],
        ["lines of 100 bytes with --log, CPU s a GB", $ours["lines_s_a_gb@100"], "<=", 2.5],
        ["crowd of 128, CPU as a multiple of flock+timeout", $ours["crowd_cpu_ms@128"] / ."flock+timeout"["crowd_cpu_ms@128"], "<=", 1],
        ["fresh token, as a multiple of pass-through", .refresh.time_us / ."pass-through".time_us, "<=", 1.15],
        ["race: refreshes of 12 agents, at most", $ours.race_posts, "<=", 1],
        ["race: wall time, as a multiple of one alone", $ours.race_of_alone, "<=", 1.3],
        ["relay, as a multiple of cat", $ours.bytes_per_s / .cat.bytes_per_s, ">=", 0.8],
        ["log, as a multiple of sed", $ours.logged_per_s / .sed.bytes_per_s, ">=", 5],
        ["long line, KiB", $ours.long_line_kib, "<=", 24576],
        ["run with frames, us more", .framed.time_us - .plain.time_us, "<=", 300],
        ["return after the last result, ms", $ours.return_ms, "<=", 50]
      ] | map(if .[1] == null then error("no sample for: \(.[0])") else . end
        | { target: .[0], value: .[1], relation: .[2], bound: .[3],
            met: (if .[2] == "<=" then .[1] <= .[3] else .[1] >= .[3] end) }) }'
}

# The medians that have a size; with --only, all.
curve_table() {
  jq -r --arg only "$only" '.subjects | to_entries[] | .key as $subject | .value | to_entries[]
    | select($only != "" or (.key | contains("@")))
    | (.key | split("@")) as [$what, $size] | [$what, ($size // 0 | tonumber), $subject, .value] | @tsv' "$json" |
    sort -k 1,1 -k 2,2n | awk -F '\t' '{ printf "%-20s%8d  %-16s%10.5g\n", $1, $2, $3, $4 }'
}

show() {
  jq -r '.subjects as $subjects
    | ["", "overhead", "of", "memory", "memory", "hand-offs", "wake-ups", "wake-ups"],
      ["", "us", "flock", "waiting", "running", "per s", "waiting", "running"],
      ("claude-run", "claude-run:exec", "flock", "flock+timeout", "tini", "timeout", "bash" | [., ($subjects[.]
        | (.overhead_us | round), (.overhead_of_flock * 100 | round / 100), .memory_kib_waiting, .memory_kib_running,
          .hand_offs_per_s, .wake_ups_waiting, .wake_ups_running)] | map(. // "-"))
    | @tsv' "$json" | awk -F '\t' '{ printf "%-16s%9s%7s%9s%9s%11s%10s%10s\n", $1, $2, $3, $4, $5, $6, $7, $8 }'
  echo
  curve_table
  echo
  jq -r '.targets[] | [if .met then "met" else "missed" end, .target, .value, .relation, .bound] | @tsv' "$json" |
    awk -F '\t' '{ printf "%-8s%-44s%8.4g  %s %s\n", $1, $2, $3, $4, $5 }'
}

ensure_programs
binary=${CLAUDE_RUN_BIN:+$(realpath -- "$CLAUDE_RUN_BIN")}
unset CDPATH
cd "$(dirname "$0")/.."
race_script=$PWD/scripts/race.sh
json=${json:-$PWD/target/bench.json}
mkdir -p "$(dirname "$json")"
if [ -z "$binary" ]; then
  cargo build --release --locked
  binary=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release/claude-run
fi

work=$(mktemp -d)
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$work/bin"
cp "$binary" "$work/bin/claude-run" # a build that ends meanwhile must not change what is measured
cd "$work"
# What the caller has set for claude-run must not count; session.lock in this dir is the one lock of all subjects.
unset "${!CLAUDE_@}" RUST_BACKTRACE
own_home=$HOME
export HOME=$work CLAUDE_CONFIG_DIR=$work

overheads() {
  local round
  for ((round = 0; round < rounds; round++)); do overhead "$round"; done
}

all_hand_offs() {
  local round
  for ((round = 0; round < hand_off_rounds; round++)); do
    hand_offs claude-run bin/claude-run true
    hand_offs flock flock session.lock true
    hand_offs flock+timeout flock session.lock timeout 100 true
  done
}

# A part by its name: what is measured there, and by what.
begin=$SECONDS
for part in "${parts[@]}"; do
  [ -z "$only" ] || [[ ",$only," = *",$part,"* ]] || continue
  echo "bench: $part ($((SECONDS - begin)) s so far)" >&2
  case $part in
    overhead) overheads ;;
    hand_offs) all_hand_offs ;;
    memory) memory_and_wake_ups ;;
    output) output "$mib" ;;
    *) "$part" ;;
  esac
done
echo "bench: measured in $((SECONDS - begin)) s" >&2
if [ -n "$only" ]; then
  medians <samples >"$json"
  curve_table
  exit
fi
summary >"$json" || fail "a sample is missing"
show
