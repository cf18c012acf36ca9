// Engines in transformers.js on onnxruntime-node: as the other drivers (answers.py).
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The package is where the environment is, not where this file is.
const [request, to] = process.argv.slice(2);
const packages = createRequire(path.join(process.cwd(), 'package.json'));
const entry = packages.resolve('@huggingface/transformers');
const { AutoModelForCausalLM, Tensor, env } = await import(pathToFileURL(entry));

env.allowRemoteModels = false;

async function load(directory) {
  env.localModelPath = path.dirname(directory) + '/';
  const model = await AutoModelForCausalLM.from_pretrained(path.basename(directory), {
    dtype: 'fp32', device: 'cpu', subfolder: '',
  });
  return async (prompts, count) => {
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const shape = [prompts.length, longest];
    const pad = BigInt(model.generation_config?.pad_token_id ?? 0);
    const ids = new BigInt64Array(shape[0] * longest).fill(pad);
    const mask = new BigInt64Array(shape[0] * longest);
    prompts.forEach((prompt, row) => prompt.forEach((token, i) => {
      const at = (row + 1) * longest - prompt.length + i;
      ids[at] = BigInt(token);
      mask[at] = 1n;
    }));
    const made = await model.generate({
      inputs: new Tensor('int64', ids, shape),
      attention_mask: new Tensor('int64', mask, shape),
      max_new_tokens: count,
      do_sample: false,
    });
    return made.tolist().map((row) => row.slice(longest).map(Number));
  };
}

async function outcome(call) {
  try {
    return await call();
  } catch (error) {
    return `${error.name}: ${String(error.message).slice(0, 500)}`;
  }
}

const { new: count, engines } = JSON.parse(fs.readFileSync(request));
const found = {};
for (const [name, { directory, prompts }] of Object.entries(engines)) {
  const run = await outcome(() => load(directory));
  if (typeof run === 'string') {
    found[name] = { single: run, batch: run };
    continue;
  }
  const single = await outcome(async () => {
    const rows = [];
    for (const prompt of prompts) rows.push(...await run([prompt], count));
    return rows;
  });
  found[name] = { single, batch: await outcome(() => run(prompts, count)) };
}
fs.writeFileSync(to, JSON.stringify(found));
