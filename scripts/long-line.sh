#!/usr/bin/env bash
# The masker on lines without an end: peak memory and speed, and the speed beside sed on lines as agents print them.
#
#   scripts/long-line.sh [MIB]     lines of so many MiB, 1024 if not given
#
# CLAUDE_RUN_BIN names the binary; else the release binary is built. A line of each kind goes through `claude-run redact` and through
# `claude-run --log`. Exit code 1 if one takes more than 16 MiB of memory.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

mib=${1:-1024}
[[ $mib =~ ^[0-9]+$ ]] || die "$mib is no number of MiB"
if [ -z "${CLAUDE_RUN_BIN:-}" ]; then
  cargo build --release --locked
  CLAUDE_RUN_BIN=$release/claude-run
fi
need python3 python3
CLAUDE_RUN_BIN=$(realpath "$CLAUDE_RUN_BIN") exec python3 - "$mib" <<'PYTHON'
import os, shutil, subprocess, sys, tempfile, threading, time

SIZE, BOUND = int(sys.argv[1]) << 20, 16 << 10
OURS = os.environ["CLAUDE_RUN_BIN"]
RULES = r"""s/((FORGE|VAULT|GH|GITHUB|CLAW|CLAUDE|ANTHROPIC)[A-Z_]*(TOKEN|PASS|KEY|SECRET)[A-Z_]*=)[^[:space:]]+/\1***/g
s/sk-ant-[A-Za-z0-9_-]+|gh[pousr]_[A-Za-z0-9]+|github_pat_[A-Za-z0-9_]+/***/g"""
KINDS = {
    "backslashes": ("GH_TOKEN=", "\\"),
    "quotes": ("GH_TOKEN=\"", "\\\""),
    "one token": ("ghp_", "a1"),
    "base64": ("", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo0Mi+/"),
    "JSON string": ("{\"text\":\"", "some \\\"quoted\\\" words of a file\\n"),
    "plain words": ("", "lorem ipsum dolor sit amet "),
    "key without an end": ("-----BEGIN PRIVATE KEY-----\\n", "MIIEpAIBAAKCAQEA0123\\n"),
}
home = tempfile.mkdtemp()
environment = {"PATH": os.environ["PATH"], "HOME": home, "LC_ALL": "C"}
too_much = False

def feed(stdin, head, unit, size):
    block = (unit * ((1 << 20) // len(unit))).encode()
    try:
        stdin.write(head.encode())
        for _ in range(size // len(block)):
            stdin.write(block)
        stdin.close()
    except BrokenPipeError:
        pass

def through(words, head, unit, size):
    """Peak memory of the process in KiB while it reads, and MB/s of its CPU time."""
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, cwd=home)
    writer = threading.Thread(target=feed, args=(process.stdin, head, unit, size))
    writer.start()
    peak = 0
    def look():
        with open(f"/proc/{process.pid}/status") as status:
            return max([int(line.split()[1]) for line in status if line.startswith("VmHWM:")], default=0)
    while writer.is_alive():
        peak = max(peak, look())
        writer.join(0.05)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return peak, size / 1e6 / (usage.ru_utime + usage.ru_stime)

def row(*cells):
    print("{:<22}{:>12}{:>12}{:>14}{:>14}".format(*cells), flush=True)

try:
    row(f"a line of {SIZE >> 20} MiB", "redact KiB", "MB/s CPU", "--log KiB", "MB/s CPU")
    for kind, (head, unit) in KINDS.items():
        redact = through([OURS, "redact"], head, unit, SIZE)
        log = through([OURS, "-q", "--lock", "pass-through", "--log", "/dev/null", "cat"], head, unit, SIZE)
        too_much |= max(redact[0], log[0]) > BOUND
        row(kind, redact[0], round(redact[1]), log[0], round(log[1]))
    print()
    lines = {
        "lines of 100 bytes": "2026-11-23T09:07:35Z INFO worker 12 has read 4096 bytes of input/chapter-7.txt, 12 of 40 are done now\n",
        "frames of JSON": '{"type":"user","message":{"content":[{"type":"tool_result","content":"     1\\tfn main() {\\n     2\\t    let words = input.split(\\" \\");\\n     3\\t}\\n"}],"usage":{"input_tokens":3,"output_tokens":24}},"session_id":"6f1c2a9e"}\n',
    }
    row("median of 3, in turn", "redact", "sed -u -E", "sed -E", "of sed -u")
    for kind, line in lines.items():
        of = {"redact": [], "-u": [], "": []}
        for _ in range(3):
            of["redact"].append(through([OURS, "redact"], "", line, 64 << 20)[1])
            of["-u"].append(through(["sed", "-u", "-E", RULES], "", line, 2 << 20)[1])
            of[""].append(through(["sed", "-E", RULES], "", line, 64 << 20)[1])
        ours, unbuffered, buffered = (sorted(speeds)[1] for speeds in of.values())
        row(kind, round(ours), f"{unbuffered:.1f}", round(buffered), f"{ours / unbuffered:.0f} times")
finally:
    shutil.rmtree(home)
sys.exit(too_much)
PYTHON
