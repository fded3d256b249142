#!/usr/bin/env bash
# Makes the packages, in target/package: a tarball with the static binary, a Debian package, the bill of materials of the binary
# (SBOM, CycloneDX), and SHA256SUMS of all.
#
#   scripts/package.sh                   makes them for this machine, and tries both in empty roots
#   scripts/package.sh --target TRIPLE   for another: x86_64 or aarch64, tried by qemu, with -unknown-linux-gnu or -unknown-linux-musl
#   scripts/package.sh --again           does it once more from a copy of the sources elsewhere, and compares: the same bytes
#   scripts/package.sh --tag             releases what was made: puts the tag vVERSION at this commit, with what CHANGELOG.md says of
#                                        it and SHA256SUMS; pushes nothing
#
# The standard library of another target comes from rustup, musl's with its libc; where that has none, aarch64's of glibc from Debian,
# with its rustc. Packages for other targets are kept as long as they are of the same commit. Without changes of your own that are not
# committed, that is: such packages are of no commit, and --tag refuses them.
#
# The same sources and the same toolchain give the same bytes, whatever the directory and the hour: times are those of the commit,
# and no path of this machine is left in the binary. The binary carries the list of its dependencies (cargo-auditable), which
# scanners such as trivy, syft and `cargo audit bin` read. Exit code: 0 all is as it should be, 1 not, 2 something is missing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

again=false tag=false target=''
while [ $# -gt 0 ]; do
  case $1 in
    --again) again=true ;;
    --tag) tag=true ;;
    --target)
      [ -n "${2-}" ] || die "--target needs a value (see --help)"
      target=$2
      shift
      ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
  shift
done
command -v cargo >/dev/null || die "there is no cargo; install a Rust toolchain (rustup.rs) and try again"
need git git
wrong() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
out=$top/target/package
version=$(sed -n 's/^version = "\(.*\)"$/\1/p;T;q' Cargo.toml)

# commit: the commit that the work tree is of; nothing where something has been changed since.
commit() { [ -n "$(git status --porcelain)" ] || git rev-parse HEAD; }

# put_tag: puts the tag at this commit, if it and the packages are what is to be released.
put_tag() {
  local name=v$version at section
  at=$(commit)
  [ -n "$at" ] || wrong "there are changes that are not committed; commit them, and call scripts/package.sh again"
  section=$(awk -v head="## [$version] - " 'on && /^## / { exit } on
    index($0, head) == 1 && / [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]$/ { on = 1 }' CHANGELOG.md)
  [ -n "$section" ] ||
    wrong "CHANGELOG.md has no dated section of $version, the version in Cargo.toml; write '## [$version] - $(date +%F)', and what is new"
  if [ "$(cat "$out/COMMIT" 2>/dev/null)" != "$at" ] || ! (cd "$out" && sha256sum --check --quiet SHA256SUMS >&2); then
    wrong "target/package has no packages of this commit; call scripts/package.sh, once for each target, then again with --tag"
  fi
  case $(git rev-parse --quiet --verify "refs/tags/$name^{commit}") in
    '') ;;
    "$at") echo "$name is there already, at this commit"; return ;;
    *) wrong "$name is at another commit; raise the version in Cargo.toml and CHANGELOG.md, or, if nobody has it, git tag -d $name" ;;
  esac
  # Lines that begin with # are headings here, and no comments.
  printf 'claude-run %s\n%s\n\n%s\n' "$version" "$section" "$(cat "$out/SHA256SUMS")" |
    git tag --annotate --cleanup=whitespace --file=- "$name"
  echo "$name is at $at now; git push origin $name makes it known"
}
if $tag; then
  put_tag
  exit
fi

host=${release%/release}
host=${host##*/}
case ${target:=$host} in
  "$host" | "${host%%-*}"-unknown-linux-musl) ;;
  aarch64-unknown-linux-gnu | aarch64-unknown-linux-musl)
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need qemu-aarch64-static qemu-user-static
    # musl's crt and libc are rustup's.
    [ "$target" != aarch64-unknown-linux-gnu ] || need /usr/aarch64-linux-gnu/lib/crt1.o libc6-dev-arm64-cross
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_{GNU,MUSL}_LINKER=aarch64-linux-gnu-gcc
    ;;
  *) die "--target is x86_64-unknown-linux-musl, aarch64-unknown-linux-gnu or aarch64-unknown-linux-musl, not '$target'" ;;
esac
need cc gcc
need jq jq
need unshare util-linux
need dpkg-deb dpkg
need_cargo auditable
need_cargo deb

# Without rustup, or where rustup cannot reach its server, Debian's rustc has what it needs for its other architectures.
if [ "$target" != "$host" ] && ! rustup target add "$target" >/dev/null 2>&1; then
  if [ "$target" != aarch64-unknown-linux-gnu ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "rustup has no standard library for $target"
  fi
  say "installing Debian's rustc-web and its standard library for arm64"
  dpkg --add-architecture arm64
  apt-get update >/dev/null
  apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev:arm64 libc6-dev-arm64-cross >/dev/null
  export RUSTC=/usr/bin/rustc
fi

# What runs a binary of the target here, the tools for its format, and what tells its tarball from another's.
emulator='' cross='' suffix=''
if [ "${target%%-*}" != "${host%%-*}" ]; then
  emulator=$(type -P "qemu-${target%%-*}-static")
  cross=${target%%-*}-linux-gnu-
fi
[ "${target##*-}" = gnu ] || suffix=-${target##*-}
name=claude-run-$version-${target%%-*}-linux$suffix
# Debian has glibc; another package of that name for musl would only take its place.
deb=''
case $target in
  x86_64-*-gnu) deb=claude-run_$version-1_amd64.deb ;;
  aarch64-*-gnu) deb=claude-run_$version-1_arm64.deb ;;
esac

# bill BINARY: its bill of materials.
bill() {
  local rust libc
  rust=$("${RUSTC:-rustc}" --version)
  if [ "${target##*-}" = gnu ]; then
    libc=glibc@$(echo '#include <features.h>' | "${cross}gcc" -E -dM - | sed -n 's/^#define __GLIBC\(_MINOR\)\?__ //p' | paste -sd.)
  else
    libc=$(rustc --print target-libdir --target "$target")/self-contained/libc.a
    libc=musl@$("${cross}ar" p "$libc" version.lo | "${cross}strings" | grep -x '[0-9.]*')
  fi
  cargo metadata --locked --format-version 1 --filter-platform "$target" |
    jq --rawfile lock Cargo.lock --arg sha256 "$(sha256sum <"$1" | cut -d' ' -f1)" --arg at "$(date -ud "@$SOURCE_DATE_EPOCH" +%FT%TZ)" \
      --arg rust "rust@$(cut -d' ' -f2 <<<"$rust")" --arg libc "$libc" -f scripts/sbom.jq
}

# crates BINARY: those that cargo-auditable has listed in it, as NAME@VERSION. The list is JSON as zlib packs it; behind another head,
# gzip unpacks it as well, and misses only a checksum of its own kind.
crates() {
  local list
  list=$(mktemp)
  "${cross}objcopy" --dump-section ".dep-v0=$list" "$1" /dev/null
  { printf '\037\213\010\0\0\0\0\0\0\0' && tail -c +3 "$list"; } | { gzip -dc 2>/dev/null || true; } |
    jq -r '.packages[] | select(.kind != "build" and (.root | not)) | "\(.name)@\(.version)"' | LC_ALL=C sort
  rm "$list"
}

# package TOP: makes the packages of the sources in TOP, in its target/package.
package() {
  local top=$1 out=$1/target/package root built at
  cd "$top"
  export CARGO_TARGET_DIR=$out/build SOURCE_DATE_EPOCH
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  at=$(commit)
  mkdir -p "$out"
  # Those of other targets stay, whatever becomes of this one; without their sums, nothing is released.
  if [ -z "$at" ] || [ "$(cat "$out/COMMIT" 2>/dev/null)" != "$at" ]; then
    rm -f "$out"/*.tar.gz "$out"/*.deb "$out"/*.cdx.json "$out/COMMIT"
  fi
  rm -rf "$out/root" "$out/SHA256SUMS"
  root=$out/root
  # These flags come on top of those in .cargo/config.toml.
  cargo auditable build --release --locked --quiet --target "$target" \
    --config "build.rustflags=['--remap-path-prefix=$top=.', '--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo']"
  built=$CARGO_TARGET_DIR/$target/release/claude-run
  # It writes its man page and completions itself, and the emulator's name leads to it.
  printf '#!/bin/sh\nexec %s %q "$@"\n' "$emulator" "$built" >"$built.runs"
  chmod +x "$built.runs"
  scripts/install.sh --prefix "$root" --binary "$built.runs" >/dev/null
  install -m 755 "$built" "$root/bin/claude-run"
  mkdir -p "$root/share/doc/claude-run"
  cp README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$root/share/doc/claude-run"
  cp scripts/install.sh "$root"
  find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX,go-w \
    --format=gnu --transform="s,^\.,$name," -C "$root" . | gzip -9n >"$out/$name.tar.gz"
  [ -z "$deb" ] || cargo deb --no-build --no-strip --quiet --target "$target" --output "$out/$deb" >/dev/null
  bill "$root/bin/claude-run" >"$out/$name.cdx.json"
  [ "$(commit)" = "$at" ] || wrong "the sources were changed meanwhile; call it again"
  printf '%s\n' "$at" >"$out/COMMIT"
}

work=$(mktemp -d)
# What fails in its trials is not left for the sums of the next target.
trap '[ $? = 0 ] || (cd "$out" 2>/dev/null && rm -f "$name.tar.gz" "$name.cdx.json" "$deb" SHA256SUMS); rm -rf "$work"' EXIT
say "packages"
package "$top"
size=$(stat -c %s "$out/root/bin/claude-run")
[ "$size" -le $((5 * 1024 * 1024)) ] || wrong "the binary has $size bytes, more than 5 MiB"
if LC_ALL=C ldd "$out/root/bin/claude-run" 2>&1 | grep -q '=>'; then wrong "the binary is linked dynamically"; fi
if grep -qaF -e "$top/" -e "${CARGO_HOME:-$HOME/.cargo}/" "$out/root/bin/claude-run"; then
  wrong "the binary names paths of this machine"
fi
differences=$(diff <(crates "$out/root/bin/claude-run") \
  <(jq -r '.components[].purl | select(startswith("pkg:cargo/")) | ltrimstr("pkg:cargo/")' "$out/$name.cdx.json" | LC_ALL=C sort)) ||
  wrong "the bill of materials is not what the binary says of itself: $differences"

say "in empty roots"
# As root, or as what a user namespace takes for it.
PATH=$PATH:/usr/sbin:/sbin
in_root=(env -i "$(type -P chroot)")
[ "$(id -u)" = 0 ] || in_root=(unshare -r "${in_root[@]}")
# works ROOT PATH: in ROOT, where there is nothing else, the binary at PATH runs itself.
works() {
  local root=$1 binary=$2 version run=("${in_root[@]}" "$1") itself=("$2")
  if [ -n "$emulator" ]; then
    cp "$emulator" "$root/emulator"
    itself=(/emulator "$2")
  fi
  version=$("${run[@]}" "${itself[@]}" --version)
  [ "$("${run[@]}" "${itself[@]}" --config-dir /config "${itself[@]}" --version 2>/dev/null)" = "$version" ] ||
    wrong "$binary does not run itself in an empty root"
  [ -e "$root/config/session.lock" ] || wrong "$binary has made no session lock"
  printf '%s: %s\n' "$binary" "$version"
}
mkdir "$work/tar" "$work/deb"
tar -xzf "$out/$name.tar.gz" -C "$work/tar" --strip-components=1 --no-same-owner
# What it runs to write the man page is for this machine.
if [ -z "$emulator" ]; then
  "$work/tar/install.sh" --prefix "$work/tar/usr/local" >/dev/null
else
  mkdir -p "$work/tar/usr/local"
  cp -R "$work/tar/bin" "$work/tar/usr/local"
fi
works "$work/tar" /usr/local/bin/claude-run
if [ -n "$deb" ] && [ "$(id -u)" = 0 ] && [ -z "$emulator" ]; then
  # dpkg needs its books; the package itself needs nothing and brings no scripts.
  mkdir -p "$work/deb/var/lib/dpkg/updates" "$work/deb/var/lib/dpkg/info"
  touch "$work/deb/var/lib/dpkg/status"
  dpkg --root="$work/deb" --log=/dev/null --install "$out/$deb" >/dev/null
  works "$work/deb" /usr/bin/claude-run
  dpkg --root="$work/deb" --log=/dev/null --purge claude-run >/dev/null
  left=$(find "$work/deb/usr" -type f 2>/dev/null || true)
  [ -z "$left" ] || wrong "dpkg --purge leaves $left"
elif [ -n "$deb" ]; then
  dpkg-deb --extract "$out/$deb" "$work/deb"
  works "$work/deb" /usr/bin/claude-run
fi

if [ -z "$emulator" ]; then
  need busybox busybox
  say "in a root of busybox alone, as Alpine has it"
  root=$work/busybox
  mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/tmp" "$root/package"
  cp "$(type -P busybox)" "$root/bin"
  # It may be linked dynamically.
  { ldd "$root/bin/busybox" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | xargs -r cp -L --parents -t "$root"
  tar -xzf "$out/$name.tar.gz" -C "$root/package" --strip-components=1 --no-same-owner
  cat >"$root/try" <<'END'
busybox --install -s /bin
set -eux
/package/install.sh --prefix /usr/local --shim=/shim
mkdir /claude
printf '#!/bin/sh\n[ "$1" = --version ] && echo "2.1.330 (Claude Code)" || echo "claude $*"\n' >/claude/claude
chmod 755 /claude/claude
[ "$(claude -p hi)" = "claude -p hi" ]
claude-run status | grep '^held by *nobody'
claude-run report | grep "^1 finished run"
claude-run doctor
claude-run setup --yes | grep 'for compose:'
/package/install.sh --prefix /usr/local --uninstall
[ -z "$(ls /usr/local /shim 2>/dev/null | grep -v :)" ]
END
  run=(unshare --mount --pid --fork)
  [ "$(id -u)" = 0 ] || run+=(--map-root-user)
  # shellcheck disable=SC2016 # for the shell in there
  "${run[@]}" sh -ec 'mount --bind "$0" "$0" && mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
    exec env -i HOME=/root ANTHROPIC_API_KEY=x \
    PATH=/shim:/usr/local/bin:/claude:/bin "$(command -v chroot)" "$0" /bin/busybox sh /try' "$root" >"$work/said" 2>&1 ||
    wrong "it does not do there: $(cat "$work/said")"
  echo "install.sh, the shim, status, report, doctor and setup"
fi

if $again; then
  say "once more, elsewhere"
  git clone --quiet "$top" "$work/elsewhere"
  (package "$work/elsewhere")
  for file in "$name.tar.gz" "$name.cdx.json" $deb; do
    cmp "$out/$file" "$work/elsewhere/target/package/$file" || wrong "$file differs"
  done
  echo "the same bytes"
fi
say "made"
(cd "$out" && sha256sum -- claude-run* | tee SHA256SUMS)
