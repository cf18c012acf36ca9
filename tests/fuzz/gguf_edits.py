"""Edits of GGUF files that leave them well-formed."""

import math
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.edits import Edit
from fuzz.gguf_bytes import ARRAY, STRING, File, Key, rewrite

SCALARS = {
    4: (0, 1, 2, 3, 4, 7, 8, 64, 256, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    5: (0, 1, -1, 2, 8, 1000, -(1 << 31)), 6: (0.0, 1.0, -1.0, 0.5, 2.0, 1e30, 1e-30, math.inf,
    math.nan), 7: (False, True), 10: (0, 1, 2, 8, 1 << 63), 11: (-1, 0, 1, 2, 8), 0: (0, 1, 255),
    STRING: (b"", b"x", b"llama", b"gpt2", b"qwen2", b"yarn", b"linear", b"none", b"\xff", b"\0",
    b"default", b"<s>", b"a b"), 12: (0.0, 1.5, math.nan),
}  # fmt: skip
# Keys that a file may have beside its own.
MORE = (
    ("{a}.rope.scaling.type", STRING), ("{a}.rope.scaling.factor", 6), ("{a}.rope.freq_base", 6),
    ("{a}.rope.scaling.original_context_length", 4), ("{a}.rope.dimension_count", 4),
    ("{a}.rope.scaling.yarn_beta_fast", 6), ("{a}.rope.scaling.attn_factor", 6),
    ("{a}.attention.sliding_window", 4), ("{a}.attention.causal", 7), ("{a}.expert_count", 4),
    ("{a}.attention.scale", 6), ("{a}.logit_scale", 6), ("{a}.vocab_size", 4), ("{a}.x", 4),
    ("{a}.nextn_predict_layers", 4), ("{a}.attention.layer_norm_epsilon", 6),
    ("{a}.final_logit_softcapping", 6), ("{a}.expert_weights_scale", 6),
    ("{a}.use_parallel_residual", 7),
    ("tokenizer.ggml.add_bos_token", 7), ("tokenizer.ggml.add_eos_token", 7),
    ("tokenizer.ggml.add_space_prefix", 7), ("tokenizer.ggml.remove_extra_whitespaces", 7),
    ("tokenizer.ggml.eot_token_id", 4), ("tokenizer.ggml.unknown_token_id", 4),
    ("tokenizer.ggml.precompiled_charsmap", STRING), ("tokenizer.ggml.model", STRING),
    ("tokenizer.ggml.pre", STRING), ("tokenizer.chat_template", STRING),
    ("tokenizer.chat_template.x y", STRING), ("tokenizer.chat_template.../x", STRING),
    ("general.alignment", 4), ("split.count", 2), ("split.no", 2), ("split.tensors.count", 5),
    ("general.architecture", STRING), ("tokenizer.ggml.bos_token_id", 4),
)  # fmt: skip
Change = Callable[[File, random.Random], None]


def of_file(about: str, change: Change) -> Callable[[Path, random.Random], Edit]:
    """Return what draws an edit that leaves a file well-formed."""

    def drawn(folder: Path, chance: random.Random) -> Edit:
        path, seed = chance.choice(sorted(folder.iterdir())), chance.random()
        return Edit(
            path.name,
            f"{about} {seed}",
            lambda target: rewrite(target, lambda file: change(file, random.Random(seed))),
        )

    return drawn


def other_value(file: File, chance: random.Random) -> None:
    key = chance.choice(file.keys)
    if key.items is None:
        key.value = chance.choice(SCALARS.get(key.kind, (0, 1)))
        return
    at = chance.randrange(len(key.value))
    how = chance.randrange(6)
    if how == 0:
        del key.value[at]
    elif how == 1:
        key.value.insert(at, key.value[at])
    elif how == 2:
        key.value = chance.choice([[], key.value[:1], key.value * 2])
    elif how == 3:
        other = chance.randrange(len(key.value))
        key.value[at], key.value[other] = key.value[other], key.value[at]
    else:
        key.value[at] = chance.choice(SCALARS.get(key.items, (0, 1)))


def other_key(file: File, chance: random.Random) -> None:
    """Take a key away, double or rename one, or give it another type."""
    at = chance.randrange(len(file.keys))
    key, how = file.keys[at], chance.randrange(5)
    if how == 0:
        del file.keys[at]
    elif how == 1:
        file.keys.insert(chance.randrange(len(file.keys)), key)
    elif how == 2:
        key.name = chance.choice([key.name + b"x", b"", b"\xff", chance.choice(file.keys).name])
    elif how == 3:
        kind = chance.choice(list(SCALARS))
        file.keys[at] = Key(key.name, kind, chance.choice(SCALARS[kind]))
    else:
        kind = chance.choice(list(SCALARS))
        items = [chance.choice(SCALARS[kind]) for _ in range(chance.choice([0, 1, 2, 40]))]
        file.keys[at] = Key(key.name, ARRAY, items, kind)


def more_keys(file: File, chance: random.Random) -> None:
    arch = next((k.value for k in file.keys if k.name == b"general.architecture"), b"llama")
    name, kind = chance.choice(MORE)
    whole = name.replace("{a}", arch.decode(errors="replace")).encode()
    if chance.random() < 0.7:
        file.keys = [key for key in file.keys if key.name != whole]
    file.keys.append(Key(whole, kind, chance.choice(SCALARS.get(kind, (0, 1, 2)))))


def other_tensor(file: File, chance: random.Random) -> None:
    at = chance.randrange(len(file.tensors))
    tensor, other = file.tensors[at], chance.choice(file.tensors)
    how = chance.randrange(8)
    if how == 0:
        tensor.name, other.name = other.name, tensor.name
    elif how == 1:
        tensor.name = chance.choice(
            [b"", b"x", tensor.name.replace(b"blk.1", b"blk.2"), other.name, b"rope_freqs.weight",
             b"output.weight", tensor.name.replace(b"weight", b"bias"), b"blk.01.attn_q.weight"]
        )  # fmt: skip
    elif how == 2:
        tensor.shape = chance.choice(
            [tensor.shape[::-1], [*tensor.shape, 1], [1 << 62, 4], tensor.shape[:1], [0], [],
             [math.prod(tensor.shape)], other.shape]
        )  # fmt: skip
    elif how == 3:
        tensor.kind = chance.choice([0, 1, 2, 8, 12, 14, 30, 39, 16, 4, 99])
    elif how == 4:
        tensor.offset = chance.choice([0, other.offset, tensor.offset + 32, 1, 1 << 63, 1 << 40])
    elif how == 5:
        del file.tensors[at]
    elif how == 6:
        file.tensors.append(tensor)
    else:
        file.tensors[at], file.tensors[0] = file.tensors[0], tensor


def other_whole(file: File, chance: random.Random) -> None:
    """Change the version, the counts, the alignment, or what follows the tensors."""
    how = chance.randrange(5)
    if how == 0:
        file.version = chance.choice([1, 2, 3, 4, 3 << 24])
    elif how == 1:
        tensors, keys = len(file.tensors), len(file.keys)
        file.counts = chance.choice(
            [(tensors + 1, keys), (tensors - 1, keys), (tensors, keys - 1), (tensors, keys + 1),
             (0, keys), (tensors, 0), (1 << 63, keys), (99_999, 9_999)]
        )  # fmt: skip
    elif how == 2:
        kept = [key for key in file.keys if key.name != b"general.alignment"]
        file.alignment = chance.choice([1, 8, 16, 64, 4096])
        file.keys = [*kept, Key(b"general.alignment", 4, file.alignment)]
    elif how == 3:
        file.data += bytes(chance.choice([1, 32, 1000]))
    else:
        file.data = file.data[: chance.randrange(len(file.data))]


MORE_EDITS = (
    *2 * (of_file("another value", other_value),),
    of_file("another key", other_key),
    of_file("a key more", more_keys),
    of_file("another tensor", other_tensor),
    of_file("another whole", other_whole),
)
