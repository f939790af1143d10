#!/usr/bin/env bash
# Checks the oldest transformers that pyproject.toml allows: makes an environment with it and runs there the tests of new
# types and a handful of tiny models, through checkpoint, export and the reference device, against transformers itself.
#
#   scripts/check_oldest_transformers.sh [FOLDER]      the environment's folder; default: one under TMPDIR, kept
#
# TRANSFORMERS=5.13.1 chooses another version, TYPES="llama mamba" other tiny models, PYTHON another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

oldest=$(sed -n 's/^ *"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
case $oldest in *.*.*) ;; *) oldest=$oldest.0 ;; esac
version=${TRANSFORMERS:-$oldest}
types=${TYPES:-"llama gpt2 gemma3_text mixtral qwen3_next mamba deepseek_v3 bloom gpt_oss falcon_h1 bart roberta"}
folder=${1:-${TMPDIR:-/tmp}/qefficient-transformers-$version}

constraints=$(mktemp)
store=$(mktemp -d)
trap 'rm -rf "$constraints" "$store"' EXIT
# an older transformers asks for older companions
grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt >"$constraints"

test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet -c "$constraints" "transformers==$version" -e '.[test]'

export QEFF_HOME=$store QEFF_DEVICE=reference
"$folder/bin/python" -m pytest -q -p no:cacheprovider tests/transformers/test_new_types.py
# shellcheck disable=SC2086  # a list of words
"$folder/bin/python" scripts/check_types.py $types
