#!/bin/sh
# Installs claude-run: the binary, its man page, completions for bash, fish and zsh, and agent-sdk.sh for shell libraries.
#
#   scripts/install.sh [--prefix DIR] [--shim[=DIR]] [--binary FILE]
#   scripts/install.sh --uninstall [--prefix DIR]
#
#   --prefix DIR    where to: DIR/bin and DIR/share (default: /usr/local for root, else ~/.local)
#   --shim[=DIR]    a link `claude` to claude-run as well, in DIR (default: PREFIX/bin): whoever calls claude comes under the
#                   lock. It has to stand before the real claude on PATH, and never takes its place
#   --binary FILE   install this binary (default: the one in an unpacked package, or else one built here with cargo)
#   --uninstall     remove what was installed there, and nothing else
#
# Any sh and busybox's tools are enough for it. It can be called again at any time; agents that run keep the binary that they began
# with. At the end it says what is wrong with PATH, if something is. Exit code: 0 done, 2 nothing was changed.
set -eu

die() { printf 'install.sh: %s\n' "$*" >&2; exit 2; }
note() { printf 'note: %s\n' "$*"; }

# Of a user who is not root, HOME decides.
shim='' binary='' uninstall=false
[ "$(id -u)" = 0 ] && prefix=/usr/local || prefix=${HOME:+$HOME/.local}
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --binary)
      [ -n "${2-}" ] || die "$1 needs a value (see --help)"
      if [ "$1" = --prefix ]; then prefix=$2; else binary=$2; fi
      shift
      ;;
    --prefix=?*) prefix=${1#*=} ;;
    --binary=?*) binary=${1#*=} ;;
    --shim) shim=default ;;
    --shim=?*) shim=${1#*=} ;;
    --uninstall) uninstall=true ;;
    -h | --help) exec sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
  shift
done
[ -n "$prefix" ] || die "there is no HOME; say where with --prefix DIR"
newline='
'
# The list of shims has one a line.
absolute() {
  case $1 in /*) path=$1 ;; *) path=$PWD/$1 ;; esac
  case $path in *"$newline"*) $uninstall || die "there is a newline in $path; choose another directory" ;; esac
  printf '%s' "${path%/}"
}
prefix=$(absolute "$prefix")
case $shim in
  '') ;;
  default) shim=$prefix/bin ;;
  *) shim=$(absolute "$shim") ;;
esac

installed=$prefix/bin/claude-run
# Where shims have been made, for --uninstall.
shims=$prefix/share/claude-run/shims
man=$prefix/share/man/man1/claude-run.1
bash=$prefix/share/bash-completion/completions/claude-run
fish=$prefix/share/fish/vendor_completions.d/claude-run.fish
zsh=$prefix/share/zsh/site-functions/_claude-run
sdk=$prefix/share/claude-run/agent-sdk.sh
set -- "$installed" "$man" "$bash" "$fish" "$zsh" "$sdk"

# shellcheck disable=SC3013 # -ef is in POSIX since 2024, and was in every sh before
is_same() { [ "$1" -ef "$2" ]; }

# is_our_shim PATH: a link to the binary that is, or is to be, installed here.
is_our_shim() { [ -L "$1" ] && { is_same "$1" "$installed" || [ "$(readlink -- "$1")" = "$installed" ]; }; }

# remove FILE: and the directories below the prefix that it leaves empty. A directory of that name is not ours.
remove() {
  if [ -f "$1" ] || [ -L "$1" ]; then
    rm -f -- "$1"
    printf 'removed %s\n' "$1"
  fi
  dir=$(dirname -- "$1")
  while [ "${dir#"$prefix"/}" != "$dir" ] && rmdir -- "$dir" 2>/dev/null; do dir=$(dirname -- "$dir"); done
}

if $uninstall; then
  if [ -f "$shims" ]; then
    while IFS= read -r path; do
      if is_our_shim "$path"; then remove "$path"; fi
    done <"$shims"
    remove "$shims" >/dev/null
  fi
  for file; do remove "$file"; done
  exit 0
fi

# Whatever can be wrong is found before anything is changed.
here=$(cd "$(dirname -- "$0")" && pwd)
# Beside this script in the sources, below it in a package.
sdk_source=$here/agent-sdk.sh
[ -f "$sdk_source" ] || sdk_source=$here/share/claude-run/agent-sdk.sh
[ -f "$sdk_source" ] || die "there is no agent-sdk.sh beside this script; take it from the same package"
if [ -n "$binary" ]; then
  if ! [ -f "$binary" ] || ! [ -x "$binary" ]; then die "$binary is no program"; fi
elif [ -x "$here/bin/claude-run" ]; then
  binary=$here/bin/claude-run
else
  command -v cargo >/dev/null || die "there is no cargo to build it; install a Rust toolchain (rustup.rs), or take a package"
  command -v cc >/dev/null || die "there is no cc to link it; install a C compiler (on Debian: apt-get install gcc libc6-dev)"
  echo "building (about a minute the first time)"
  (cd "$here/.." && cargo build --release --locked --quiet)
  binary=${CARGO_TARGET_DIR:-$here/../target}/$(rustc -vV | sed -n 's/^host: //p')/release/claude-run
fi
"$binary" --version >/dev/null || die "$binary does not run here"
if [ -n "$shim" ] && { [ -e "$shim/claude" ] || [ -L "$shim/claude" ]; } && ! is_our_shim "$shim/claude"; then
  die "$shim/claude is not a link of claude-run's, and is left alone; choose a directory before it on PATH: --shim=DIR"
fi
for file in "$@" ${shim:+"$shim/claude" "$shims"}; do
  # mv would put the file into it.
  [ ! -d "$file" ] || die "$file is a directory; take it away, or choose another --prefix"
  dir=$(dirname -- "$file")
  first=$dir # that is there: the others are made in it
  until [ -e "$first" ] || [ -L "$first" ]; do first=$(dirname -- "$first"); done
  if ! [ -d "$first" ] || ! [ -w "$first" ] || ! [ -x "$first" ]; then
    die "cannot write $dir; call this as root, or choose another --prefix"
  fi
done
umask 022 # directories for everybody, whatever root's is
for file in "$@" ${shim:+"$shim/claude" "$shims"}; do mkdir -p -- "$(dirname -- "$file")"; done

# put FILE MODE COMMAND...: what COMMAND prints, in place at once or not at all.
put() {
  file=$1 mode=$2
  shift 2
  new=$(mktemp "$file.XXXXXX")
  trap 'rm -f -- "$new"' EXIT
  "$@" >"$new"
  chmod "$mode" "$new"
  mv -f -- "$new" "$file"
  trap - EXIT
  printf 'installed %s\n' "$file"
}

put "$installed" 755 cat "$binary"
put "$man" 644 "$installed" man-page
put "$bash" 644 "$installed" completions bash
put "$fish" 644 "$installed" completions fish
put "$zsh" 644 "$installed" completions zsh
put "$sdk" 644 cat "$sdk_source"
if [ -n "$shim" ]; then
  ln -sfn -- "$installed" "$shim/claude"
  printf 'installed %s -> %s\n' "$shim/claude" "$installed"
  touch "$shims"
  grep -qxF -- "$shim/claude" "$shims" || printf '%s\n' "$shim/claude" >>"$shims"
fi

# What a caller would find.
on_path() { case :$PATH: in *":$1:"*) ;; *) return 1 ;; esac; }
# programs NAME: all of that name, in the order of PATH.
programs() (
  set -f
  IFS=:
  for dir in $PATH; do
    if [ -f "$dir/$1" ] && [ -x "$dir/$1" ]; then printf '%s\n' "$dir/$1"; fi
  done
)
found=$(programs claude-run | head -n 1)
if ! on_path "$prefix/bin"; then
  [ "$shim" = "$prefix/bin" ] || note "$prefix/bin is not on PATH; add it: export PATH=\"$prefix/bin:\$PATH\""
elif ! is_same "$found" "$installed"; then
  note "another claude-run comes before it on PATH: $found"
fi
if [ -n "$shim" ]; then
  found=$(programs claude | head -n 1)
  if ! on_path "$shim"; then
    note "$shim is not on PATH, so claude is not under the lock yet; add it in front: export PATH=\"$shim:\$PATH\""
  elif ! is_same "$found" "$installed"; then
    note "$found comes before the shim on PATH, so claude is not under the lock yet; put $shim in front of it"
  fi
  real=$(programs claude | while IFS= read -r claude; do is_same "$claude" "$installed" || printf '%s\n' "$claude"; done)
  [ -n "$real" ] || note "no other claude is on PATH for the shim to run; install Claude Code, or name it in CLAUDE_RUN_CLAUDE"
fi
if command -v zsh >/dev/null && [ "$prefix" != /usr/local ] && [ "$prefix" != /usr ]; then
  note "for zsh, before compinit: fpath=($prefix/share/zsh/site-functions \$fpath)"
fi
