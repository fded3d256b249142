#!/usr/bin/env bash
# Everything that has to be right before a change lands: format, lints, tests, docs, scripts, dependencies.
# Installs what is missing. What is typed behind it goes to `cargo test`.
#
#   scripts/test.sh                         all of it
#   cargo test --test it lock::             one file of tests
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need cc gcc
need shellcheck shellcheck
need flock util-linux # and unshare and setpriv, which come with it
need node nodejs
need strace strace
for tool in busybox jq patch; do need "$tool" "$tool"; done # what a factory's scripts run on, and with
need tini tini # the peers, whose answers are compared with ours
need dumb-init dumb-init
need npm npm
for shell in fish zsh; do need "$shell" "$shell"; done # that complete by our scripts
need man man-db
need systemd-analyze systemd # whose units scripts/examples has
need etcd etcd-server # an engine with a lock, for lock helpers
need etcdctl etcd-client
need bindfs bindfs # a file system that hosts share without its locks
need_cargo deny
for component in rustfmt clippy; do
  cargo "${component#rust}" --version >/dev/null 2>&1 || rustup component add "$component"
done

say "format"
cargo fmt --check
cargo fmt --check --manifest-path tests/model/Cargo.toml
say "lints"
cargo clippy --all-targets --locked --quiet -- -D warnings
say "scripts"
shellcheck --external-sources scripts/*.sh tests/factory/*.sh tests/no_claude/claude .ci/run
say "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet
say "dependencies"
# The advisory database is fetched from elsewhere, so it is left to `cargo deny check advisories`, by hand.
cargo deny --locked check bans licenses sources
# The other party of claude's own lock, and the parsers of what scripts/examples is for. They are no part of claude-run, and stay
# below target/.
[ -d target/npm/node_modules/proper-lockfile ] && [ -d target/npm/node_modules/yaml ] && [ -d target/npm/node_modules/hcl2-parser ] ||
  npm install --prefix target/npm --no-save --no-audit --no-fund --silent proper-lockfile@4.1.2 yaml@2.8.1 hcl2-parser@1.0.3
say "models"
# Without the flags of a static binary, which their dependencies do not need.
RUSTFLAGS='' CARGO_TARGET_DIR=$top/target/model cargo test --manifest-path tests/model/Cargo.toml --locked --quiet
say "tests"
cargo test --locked "$@"
scripts/fuzz.sh 10
say "what a newcomer types first"
scripts/quickstart.sh
# The binary that people get: optimised, static, small, and at home in an empty root.
scripts/package.sh
say "all is well"
