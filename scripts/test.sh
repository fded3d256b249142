#!/usr/bin/env bash
# Everything that has to be right before a change lands: format, lints, tests, docs, scripts, dependencies.
# It lists the tools that are missing, and installs them; below target/, npm's packages and cargo's builds. What is typed behind it
# goes to `cargo test`.
#
#   scripts/test.sh                         all of it
#   scripts/test.sh --check-tools           only looks which tools are missing: exit code 1 if some are
#   cargo test --test it lock::             one file of tests
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

# Each as COMMAND:PACKAGE of Debian's. What a factory's scripts run on; the peers, whose answers are compared with ours; shells that
# complete by our scripts; a pager; an engine with a lock, for lock helpers; a file system that hosts share without its locks.
tools=(cc:gcc shellcheck:shellcheck flock:util-linux node:nodejs npm:npm strace:strace busybox:busybox jq:jq patch:patch tini:tini
  dumb-init:dumb-init fish:fish zsh:zsh less:less man:man-db systemd-analyze:systemd etcd:etcd-server etcdctl:etcd-client
  bindfs:bindfs)
has_cargo() { cargo "$1" --version >/dev/null 2>&1; }
missing=()
for tool in "${tools[@]}"; do command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:} (for ${tool%:*})"); done
has_cargo deny || missing+=("cargo-deny (built by cargo, which takes minutes)")
has_cargo fuzz || missing+=("cargo-fuzz (likewise)")
for component in rustfmt clippy; do has_cargo "${component#rust}" || missing+=("$component (by rustup)"); done
for package in auditable deb; do has_cargo "$package" || missing+=("cargo-$package (likewise)"); done
command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
if [ ${#missing[@]} -gt 0 ]; then
  say "missing"
  printf '%s\n' "${missing[@]}"
fi
if [ "${1-}" = --check-tools ]; then
  [ ${#missing[@]} = 0 ] || exit 1
  echo "all tools are there"
  exit
fi
[ ${#missing[@]} = 0 ] || say "all of these are installed now: Debian's packages by apt-get, as root"
for tool in "${tools[@]}"; do need "${tool%:*}" "${tool#*:}"; done
need_cargo deny
for component in rustfmt clippy; do has_cargo "${component#rust}" || rustup component add "$component"; done

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
has_all() { for package; do [ -d "target/npm/node_modules/$package" ] || return 1; done; }
has_all proper-lockfile yaml hcl2-parser ||
  npm install --prefix target/npm --no-save --no-audit --no-fund --silent proper-lockfile@4.1.2 yaml@2.8.1 hcl2-parser@1.0.3
# What these build is shared, so it is built before several want to.
say "builds"
cargo test --locked --no-run --quiet
models=(cargo test --manifest-path tests/model/Cargo.toml --target-dir target --locked --quiet)
"${models[@]}" --no-run

# beside NAME COMMAND...: runs COMMAND while the tests wait, which is most of the time; what it prints is in target/NAME.log. It has a
# process group of its own, so that nothing of it is left when the tests fail, or at Ctrl-C.
declare -A running=()
beside() {
  set -m
  nice "${@:2}" </dev/null >"target/$1.log" 2>&1 &
  set +m
  running[$1]=$!
}
stop() { for group in "${running[@]}"; do kill -- "-$group" 2>/dev/null || :; done; }
trap stop EXIT
trap 'exit 130' INT TERM
beside models "${models[@]}"
# What packages are made for; its standard library comes from rustup.
targets=()
for target in {x86_64,aarch64}-unknown-linux-{gnu,musl}; do
  if [ -d "$(rustc --print target-libdir --target "$target")" ]; then
    targets+=(--target "$target")
  else
    echo "not checked, since rustup has no standard library for it here: $target"
  fi
done
beside targets cargo check --locked --lib --bins --target-dir target/check "${targets[@]}"
# The binary that people get: optimised, static, small, and at home in an empty root.
beside packages scripts/package.sh
beside fuzz scripts/fuzz.sh 4
say "tests"
cargo test --locked "$@"
say "what a newcomer types first"
scripts/quickstart.sh
for name in models targets fuzz packages; do
  say "$name"
  status=0
  wait "${running[$name]}" || status=$?
  unset "running[$name]"
  cat "target/$name.log"
  [ "$status" = 0 ] || die "$name: see above"
done
say "all is well"
