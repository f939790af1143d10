#!/usr/bin/env bash
# Replays the corpus with the compiler of an installed SDK, and writes what it said into one file: conformance.json.
#
#   tests/conformance/run_on_real.sh [SDK_ROOT [OUTPUT [options of replay.py]]]
#
# SDK_ROOT is QEFF_QAIC_ROOT or /opt/qti-aic unless given; OUTPUT is ./conformance-HOST. Needs bash and Python 3.10 or
# newer (PYTHON names it); cases with a graph need onnx in it. Stopped half-way, the same command goes on.
set -u
root=${1:-${QEFF_QAIC_ROOT:-/opt/qti-aic}}
output=${2:-conformance-$(hostname)}
shift $(($# < 2 ? $# : 2))
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

mkdir -p "$output/tools" || exit 1
output=$(cd "$output" && pwd)

# Keeps what a tool says, with its exit code; a tool that is not there, or hangs, stops nothing.
save() {
    local name=$1
    shift
    (cd "$output/tools" && timeout 120 "$@" </dev/null >"$name.txt" 2>&1)
    echo "exit code $?" >>"$output/tools/$name.txt"
}
save help "$root/exec/qaic-compile" -h
save help-of-qaic-exec "$root/exec/qaic-exec" -h
save operators "$root/exec/qaic-compile" -operators-supported=onnx
save devices "$root/tools/qaic-util" -q
save versions "$root/tools/qaic-version-util"

exec "$python" "$here/replay.py" --root "$root" --output "$output" "$@"
