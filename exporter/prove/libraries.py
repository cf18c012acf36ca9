"""Other programs themselves, where they are installed: what they pick after rows of token ids.

Each function opens an engine's directory with one of them. It raises ModuleNotFoundError where that
is not here, and one of REFUSALS where it does not open the engine.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

Rows = Sequence[Sequence[int]]
Batches = Sequence[Rows]
Tokens = list[list[list[int]]]  # tokens for each row of each batch
REFUSALS = (RuntimeError, ValueError, OSError)
SECONDS = 600  # for node to open a model and pick a few tokens


@dataclass(frozen=True)
class Opened:
    """A program with an engine. greedy: (batches, how many) -> the tokens that it picks."""

    name: str
    version: str
    greedy: Callable[[Batches, int], Tokens]


def genai(engine: Path) -> Opened:
    """ONNX Runtime GenAI."""
    og = import_module("onnxruntime_genai")
    model = og.Model(str(engine))
    pad = json.loads((engine / "genai_config.json").read_bytes())["model"]["pad_token_id"]

    def batch(rows: Rows, count: int) -> list[list[int]]:
        longest = max(map(len, rows))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=longest + count, batch_size=len(rows), do_sample=False)
        generator = og.Generator(model, params)
        ids = _padded(rows, pad, left=False).astype(np.int32)
        generator.append_tokens(ids if len(rows) > 1 else ids[0])
        found: list[list[int]] = [[] for _ in rows]
        while not generator.is_done() and len(found[0]) < count:
            generator.generate_next_token()
            for row, token in zip(found, generator.get_next_tokens(), strict=True):
                row.append(int(token))
        return found

    return Opened("onnxruntime-genai", str(og.__version__), each(batch))


def optimum(engine: Path) -> Opened:
    """optimum, which runs transformers' own loop over ONNX Runtime."""
    torch, library = import_module("torch"), import_module("optimum.onnxruntime")
    model = library.ORTModelForCausalLM.from_pretrained(str(engine), local_files_only=True)

    def batch(rows: Rows, count: int) -> list[list[int]]:
        pad = model.config.pad_token_id or 0
        ids, mask = (_padded(given, fill, left=True) for given, fill in (
            (rows, pad), ([[1] * len(row) for row in rows], 0),
        ))  # fmt: skip
        out = model.generate(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
            max_new_tokens=count, do_sample=False,
        )  # fmt: skip
        found: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return found

    return Opened("optimum", version("optimum-onnx"), each(batch))


def each(batch: Callable[[Rows, int], list[list[int]]]) -> Callable[[Batches, int], Tokens]:
    return lambda batches, count: [batch(rows, count) for rows in batches]


# Of standard input: the directory, batches, how many; to standard output: the version, the tokens.
SCRIPT = """
import { AutoModelForCausalLM, Tensor, env } from '@huggingface/transformers';
import { readFileSync } from 'fs';
import { dirname, basename } from 'path';
const { engine, batches, count } = JSON.parse(readFileSync(0));
env.allowRemoteModels = false;
env.localModelPath = dirname(engine) + '/';
const given = { dtype: 'fp32', device: 'cpu', subfolder: '' };
const model = await AutoModelForCausalLM.from_pretrained(basename(engine), given);
const found = [];
for (const rows of batches) {
  const wide = Math.max(...rows.map((row) => row.length)), shape = [rows.length, wide];
  const ids = new BigInt64Array(rows.length * wide).fill(BigInt(model.config.pad_token_id ?? 0));
  const mask = new BigInt64Array(rows.length * wide);
  rows.forEach((row, r) => row.forEach((id, t) => {
    const place = r * wide + wide - row.length + t;
    ids[place] = BigInt(id);
    mask[place] = 1n;
  }));
  const out = await model.generate({
    inputs: new Tensor('int64', ids, shape), attention_mask: new Tensor('int64', mask, shape),
    max_new_tokens: count, do_sample: false,
  });
  found.push(out.tolist().map((row) => row.slice(wide).map(Number)));
}
console.log(JSON.stringify({ version: env.version, found }));
"""


def transformers_js(engine: Path) -> Opened:
    """transformers.js in node, as it is found from the working directory."""

    def ask(batches: Batches, count: int) -> tuple[str, Tokens]:
        node = shutil.which("node")
        if node is None:
            raise ModuleNotFoundError("node is not installed", name="node")
        given = [[list(row) for row in rows] for rows in batches]
        asked = {"engine": str(engine.resolve()), "batches": given, "count": count}
        done = subprocess.run(
            [node, "--input-type=module", "-e", SCRIPT], input=json.dumps(asked),
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        if "ERR_MODULE_NOT_FOUND" in done.stderr:
            name = "@huggingface/transformers"
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "Error" in line]
            raise RuntimeError(lines[0] if lines else done.stderr[-300:])
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        return answer["version"], answer["found"]

    release, _ = ask([], 0)
    return Opened("transformers.js", release, lambda batches, count: ask(batches, count)[1])


def _padded(rows: Rows, pad: int, left: bool) -> np.ndarray:
    """Return rows of one length, B,T int64."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, np.int64)
    for row, given in zip(ids, rows, strict=True):
        row[longest - len(given) if left else 0 :][: len(given)] = given
    return ids
