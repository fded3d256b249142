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
#   --uninstall     remove what has the names of what is installed there, the shims, and directories that this leaves empty
#
# Any sh and busybox's tools are enough for it. It can be called again at any time; agents that run keep the binary that they began
# with. At the end it says what is wrong with PATH, if something is. Exit code: 0 done, 1 begun and not done, 2 nothing was changed.
set -eu
unset CDPATH # with it, cd may go elsewhere, and prints where

begun=false new=''
# Whatever code it was that ended this.
ended() {
  code=${1:-$?}
  [ -z "$new" ] || rm -f -- "$new"
  [ "$code" = 0 ] || { $begun && code=1 || code=2; }
  exit "$code"
}
trap ended EXIT
trap 'ended 1' HUP INT TERM # not every sh runs the trap of EXIT upon a signal

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

# is_our_shim PATH: a link to the binary that is, was, or is to be installed here, under whatever name of the prefix.
is_our_shim() {
  [ -L "$1" ] || return 1
  target=$(readlink -- "$1")
  [ "$target" = "$installed" ] || is_same "$1" "$installed" ||
    { [ "${target%/bin/claude-run}" != "$target" ] && is_same "${target%/bin/claude-run}" "$prefix"; }
}

# remove FILE: what a killed call has left beside it as well, and the directories below the prefix that this leaves empty. A directory of
# that name is not ours.
remove() {
  for file in "$1" "$1".claude-run-new.??????; do
    if [ -f "$file" ] || [ -L "$file" ]; then
      found=true
      rm -f -- "$file" || { left=true; continue; }
      printf 'removed %s\n' "$file"
      dir=$(dirname -- "$file")
      while [ "${dir#"$prefix"/}" != "$dir" ] && rmdir -- "$dir" 2>/dev/null; do dir=$(dirname -- "$dir"); done
    fi
  done
}

if $uninstall; then
  begun=true found=false left=false
  if [ -f "$shims" ]; then
    while IFS= read -r path || [ -n "$path" ]; do
      if is_our_shim "$path"; then remove "$path"; fi
    done <"$shims"
  fi
  $left || remove "$shims" >/dev/null # with a shim left, the next call looks for it there
  for name; do remove "$name"; done
  $found || echo "there is nothing of claude-run's in $prefix"
  $left || exit 0
  echo "install.sh: the rest is removed; call this again as a user who can remove what is named above" >&2
  exit 1
fi

# Whatever can be wrong is found before anything is changed.
here=$(cd "$(dirname -- "$0")" && pwd)
# Beside this script in the sources, below it in a package.
sdk_source=$here/agent-sdk.sh
[ -f "$sdk_source" ] || sdk_source=$here/share/claude-run/agent-sdk.sh
[ -f "$sdk_source" ] || die "there is no agent-sdk.sh beside this script; take it from the same package"
if [ -n "$binary" ]; then
  binary=$(absolute "$binary") # a bare name would be looked for on PATH
  if ! [ -f "$binary" ] || ! [ -x "$binary" ]; then die "$binary is no program"; fi
elif [ -x "$here/bin/claude-run" ]; then
  binary=$here/bin/claude-run
else
  command -v cargo >/dev/null || die "there is no cargo to build it; install a Rust toolchain (rustup.rs), or take a package"
  command -v cc >/dev/null || die "there is no cc to link it; install a C compiler (on Debian: apt-get install gcc libc6-dev)"
  echo "building (about a minute the first time)"
  CARGO_TARGET_DIR=$(absolute "${CARGO_TARGET_DIR:-$here/../target}")
  export CARGO_TARGET_DIR
  (cd "$here/.." && cargo build --release --locked --quiet)
  binary=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release/claude-run
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
begun=true

# put FILE MODE COMMAND...: what COMMAND prints, in place at once or not at all.
put() {
  file=$1 mode=$2
  shift 2
  mkdir -p -- "$(dirname -- "$file")"
  new=$(mktemp "$file.claude-run-new.XXXXXX")
  "$@" >"$new"
  chmod "$mode" "$new"
  mv -f -- "$new" "$file"
  printf 'installed %s\n' "$file"
}

put "$installed" 755 cat "$binary"
put "$man" 644 "$installed" man-page
put "$bash" 644 "$installed" completions bash
put "$fish" 644 "$installed" completions fish
put "$zsh" 644 "$installed" completions zsh
put "$sdk" 644 cat "$sdk_source"
if [ -n "$shim" ]; then
  # In the list before it is there: whatever ends this, --uninstall finds it.
  list() { printf '%s\n' "$shim/claude" && if [ -f "$shims" ]; then grep -vxF -- "$shim/claude" "$shims" || :; fi; }
  put "$shims" 644 list >/dev/null
  mkdir -p -- "$shim"
  ln -sfn -- "$installed" "$shim/claude"
  printf 'installed %s -> %s\n' "$shim/claude" "$installed"
fi

# What a caller would find.
# programs NAME: all of that name, in the order of PATH, behind `ours` what is installed here, behind `other` what is not.
programs() (
  set -f
  IFS=:
  for dir in $PATH; do
    file=${dir:-.}/$1 whose=other
    if [ -f "$file" ] && [ -x "$file" ]; then
      if is_same "$file" "$installed"; then whose=ours; fi
      printf '%s %s\n' "$whose" "$file"
    fi
  done
)
found=$(programs claude-run)
first=${found%%"$newline"*}
case $found in
  ours*) ;;
  *"${newline}ours "*) note "another claude-run comes before it on PATH: ${first#other }" ;;
  *) [ "$shim" = "$prefix/bin" ] || note "$prefix/bin is not on PATH; add it: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
if [ -n "$shim" ]; then
  found=$(programs claude)
  first=${found%%"$newline"*}
  case $found in
    ours*) ;;
    *"${newline}ours "*)
      note "${first#other } comes before the shim on PATH, so claude is not under the lock yet; put $shim in front of it"
      ;;
    *) note "$shim is not on PATH, so claude is not under the lock yet; add it in front: export PATH=\"$shim:\$PATH\"" ;;
  esac
  case $newline$found in
    *"${newline}other "*) ;;
    *) note "no other claude is on PATH for the shim to run; install Claude Code, or name it in CLAUDE_RUN_CLAUDE" ;;
  esac
fi
if command -v zsh >/dev/null && [ "$prefix" != /usr/local ] && [ "$prefix" != /usr ]; then
  note "for zsh, before compinit: fpath=($prefix/share/zsh/site-functions \$fpath)"
fi
