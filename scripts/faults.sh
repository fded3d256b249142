#!/usr/bin/env bash
# Faults at random, and every promise checked throughout: hundreds of agents at once on one config dir, old flock callers among
# them, while claude-run, what it runs and what stands below that are killed, told to end and stopped, the lock file is replaced
# and removed, the disk fills up, the config dir is read-only, the credentials are cut, the clock is stepped, the mode and the slots
# are set anew, and claude is killed in mid-refresh.
#
#   scripts/faults.sh [--seconds N] [--agents N] [--seed N]     60 s, 200 agents, a new seed
#
#   scripts/faults.sh slots [--runs N] [--slots N] [--seed N]   200 runs on 4 slots: runs and waiters are killed, and never
#                                                               five run at once, nor out of order, nor is a slot left free
#
# Beside them there are runs that have one fault each, and one way to end: a second turn, a stop under an idle limit, output that
# cannot be written, uncommon signals, a file size limit, a request that the child ignores, a fork chain, a hung file system, a TERM
# that it keeps to itself, a stop in mid-refresh.
#
# What must hold: never two agents inside one lock or in one slot, a setting that is the new one or the old one as the exit code
# says, never a run that follows another mode than the one set before it, never the lock free while its agent lives or passed on
# while a tool of it does, never two refreshes at once, never a wait for a lock that is free, every exit code one of the table's and
# with its reason, never a process left by a claude-run that has returned, and when all is over no record, no process, and a free
# lock.
# It prints how many agents there were, how they ended, which faults there were, and the violations: exit code 0 if there are
# none. tests/faults holds the program; it runs in namespaces of its own (as root, or where user namespaces are allowed), so
# that it can harm nobody else.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need cc gcc
if [ "${1-}" = slots ]; then
  cargo build --release --locked --quiet --bin claude-run --example faults
  exec "$release/examples/faults" slots --claude-run "$release/claude-run" "${@:2}"
fi
need unshare util-linux
for flags in -mpf -rmpf; do
  if unshare "$flags" --mount-proc mount -t tmpfs probe /mnt 2>/dev/null; then own=$flags; fi
done
[ -n "${own-}" ] || die "mount and PID namespaces are refused here; try as root"
cargo build --release --locked --quiet --bin claude-run --example faults
exec unshare "$own" --mount-proc --kill-child "$release/examples/faults" --claude-run "$release/claude-run" "$@"
