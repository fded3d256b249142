# shellcheck shell=bash
# What the scripts share: --help, being in the checkout, and having the tools. Sourced, never run.

# --help prints the comment at the top of the script, and nothing is done.
for word in "$@"; do
  case $word in
    --) break ;;
    -h | --help) exec sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" ;;
  esac
done

unset CDPATH # with it, cd may go elsewhere, and prints where
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit
# Where cargo puts what .cargo/config.toml has it build. Without a rustc, `command -v cargo` is what tells so.
# shellcheck disable=SC2034 # for those that source this
release=$top/target/$({ rustc -vV 2>/dev/null || :; } | sed -n 's/^host: //p')/release

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# take_values OPTION=VARIABLE... -- WORDS...: gives each VARIABLE the value behind its OPTION at the head of WORDS, and rows the rest,
# or one empty word.
take_values() {
  local -A variables=()
  while [ "$1" != -- ]; do
    variables[${1%%=*}]=${1#*=}
    shift
  done
  shift
  while [[ ${1-} = -* ]]; do
    [ -n "${variables[$1]-}" ] || die "unknown argument $1 (see --help)"
    [ $# -gt 1 ] || die "$1 needs a value (see --help)"
    printf -v "${variables[$1]}" %s "$2"
    shift 2
  done
  # shellcheck disable=SC2034 # for those that source this
  rows=("${@:-}")
}

# need WHAT PACKAGE: has a command, or a file by its whole path, or installs Debian's PACKAGE, or says what to do.
need() {
  ! has "$1" || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "$1 is missing; install it (on Debian: apt-get install $2) and try again"
  fi
  say "installing $2"
  if ! apt-get install -y --no-install-recommends "$2" >/dev/null 2>&1; then
    apt-get update >/dev/null && apt-get install -y --no-install-recommends "$2" >/dev/null
  fi
  has "$1" || die "$2 was installed, but there is no $1"
}

# has WHAT: it is there.
has() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }

# need_cargo SUBCOMMAND: has `cargo SUBCOMMAND`, or builds and installs it; unoptimised, which takes half the time: they run for
# seconds.
need_cargo() {
  ! cargo "$1" --version >/dev/null 2>&1 || return 0
  say "installing cargo-$1 (a few minutes, once)"
  cargo install --locked --quiet --debug "cargo-$1"
}
