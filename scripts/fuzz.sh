#!/usr/bin/env bash
# Fuzzes what reads bytes that others have written: one target after the other, each for a while.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     60 s for each of tests/fuzz/targets, if nothing else is said
#
# What it finds stays in target/fuzz, and so do the inputs that led somewhere new; the next run begins with them. Those in
# tests/fuzz/corpus, real output of Claude Code in small, are where the first one begins.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || die "$seconds is no number of seconds"
shift $(($# > 0))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for target in tests/fuzz/targets/*.rs; do targets+=("$(basename "$target" .rs)"); done
need g++ g++
need_cargo fuzz

# The instrumentation is not for stable compilers; told to take it, they do. No sanitizer: there is no unsafe code in what is
# fuzzed, and std is not built for one.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$top/target/fuzz
# The flags of the product (a static binary) are not for this.
host=$(rustc -vV | sed -n 's/^host: //p')
for target in "${targets[@]}"; do
  say "fuzzing $target for $seconds s"
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/found"
  log=$top/target/fuzz/$target.log
  if ! (cd tests/fuzz && RUSTFLAGS='' cargo fuzz run --fuzz-dir . --sanitizer none --target "$host" "$target" \
    "$top/target/fuzz/corpus/$target" "corpus/$target" -- \
    -max_total_time="$seconds" -artifact_prefix="$top/target/fuzz/found/" -print_final_stats=1) >"$log" 2>&1; then
    tail -n 20 "$log"
    die "$target: see target/fuzz/$target.log and target/fuzz/found"
  fi
  grep -E '^stat::(number_of_executed_units|peak_rss_mb)' "$log"
done
