#!/usr/bin/env bash
# Which lines of src no test reaches: unit tests and behaviour tests together (with cargo-llvm-cov, which it installs).
#
#   scripts/coverage.sh [FILE...]     a line for each file; of those named here, the lines that are not reached
#
# What ends by KILL, or becomes another program by exec, cannot tell what it has reached.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

need_cargo llvm-cov
rustup component add llvm-tools >/dev/null 2>&1 || true # without rustup, LLVM_COV and LLVM_PROFDATA name them
export CARGO_TARGET_DIR=$top/target/coverage
# shellcheck source=/dev/null
. <(cargo llvm-cov show-env --export-prefix 2>/dev/null)
cargo llvm-cov clean --workspace
trap 'rm -f default_*.profraw' EXIT # of those whose environment was emptied
cargo build --locked --quiet --bins --examples
# A test that measures, or counts system calls, may fail with the instruments in.
cargo test --locked --lib --test it >target/coverage.log 2>&1 || true
grep -E '^test .* FAILED|^test result' target/coverage.log
report() {
  # What was killed while it wrote has left half a file.
  cargo llvm-cov report --failure-mode all --ignore-filename-regex '(^|/)tests(/|[.]rs)' "$@" 2>/dev/null
}
report --summary-only | awk '/^Filename/ || /[.]rs / || /^TOTAL/ { printf "%-40s %6s lines, %4s not reached, %s\n", $1, $8, $9, $10 }'
for file in "$@"; do
  echo
  report --text | awk -v file="$file" '
    /^\// { shown = index($0, file) } shown && /^ +[0-9]+\| +0\|/ { print file ":" $0 }'
done
