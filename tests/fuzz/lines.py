"""Command lines: a good one of each command, and what makes one odd."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import click

from lmcast.exporter.cli import cli

# Files and folders of a trial, and what is none. What a path leads to may be read and written over:
# devices are for reports alone, and nothing here looks like ORG/NAME, a model of the Hub.
INPUTS = (
    "checkpoint", "engine", "packed", "portable", "recipe", "empty", "notes.txt", "prompts.txt",
    "prompts.jsonl", "corpus.txt", "corpus.jsonl", "slice.json", "private.pem", "public.pem",
)  # fmt: skip
PATHS = (
    *INPUTS, "nothing", "nothing/below/it", "out", "report.json", "checkpoint/config.json",
    "checkpoint/model.safetensors", "engine/engine.json", "engine/engine.onnx",
    "engine/report.json",
    "recipe/recipe.json", "pipe", "loop", "dangling", "to-engine", "to-notes", ".", "..", "", "-",
    "engine/", "./engine", "engine/../checkpoint", "a\nb", "a b", "é\u202e", "\udcff", "x" * 300,
    "x/" * 3000, "~", "--", "*", "notes.txt/below/it",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/full", "/dev/zero", "/dev/stdin", "/proc/version", "/")
OUTPUTS = ("output",)  # options that name a folder to write
USUAL = ("0", "1", "2", "3", "4", "8", "16", "50", "128", "129", "0.5", "1.5", "1000000000")
NUMBERS = (
    "-1", "-0", "2147483647", "2147483648", "4294967296", "65536", "65537", "10001", "1e-9",
    "9223372036854775808", "9" * 5000, "1.0", "0.5", "1e3", "1e-320", "1e400", "nan", "inf",
    "-inf", "0x10", "1_0", " 1", "٣", "", "x", "True", "1,2", "1 2",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "abc", "-", "--", "\udcff", "é" * 200, "\x1b[31m", "a\nb", "1 2 3", "99999",
    "1,,2", "%s%n", "x" * 100_000, "{", "null", "[" * 50_000, "..",
)  # fmt: skip
# Name of a parameter that is a text -> texts of its kind, and nearly.
OF_KIND: dict[str, tuple[str, ...]] = {
    "prompt": ("abc", "5 6 7", "5,6", "-", "97", "hello </s> you", "x" * 128, "x" * 70_000),
    "target": ("cpu", "onnx", "cuda", "tensorrt", "tensorrt-rtx", "CPU"),
    "recipe": ("fp8", "int8", "int4", "mxfp4", "nvfp4", "fp32", "int8 "),
    "observer": ("maximum", "mse", "percentile", "entropy", "none"),
    "budget": ("kl=0.1", "kl=1e9", "kl=", "kl=nan", "kl=-1", "kl=1=2", "x=1", "kl=0"),
    "kv": ("fp8", "int8", ""),
    "sm": ("89", "89,120", "0", "-1", "89,", "8.9", "89,89", "9" * 5000),
    "inert": ("hidden_size", "a.b,c", ",", "hidden_size,hidden_size", "torch_dtype"),
    "revision": ("main", "", "refs/pr/1"),
    "system": ("Be brief.", "", "\ud800"),
    "template": ("default", "tool_use", ""),
    "stop": ("</s>", "a", "", "e" * 9),
    "chat_kwargs": (
        "{}", "[]", '{"a": 1, "a": 2}', '{"a": 1}', '{"tools": 3}', '{"tools": []}',
        '{"chat_template": "x"}', '{"chat_template": "default"}', '{"messages": []}',
        '{"messages": NaN}', '{"bos_token": "\\ud800"}', '{"bos_token": 3}',
        '{"add_generation_prompt": 1}', '{"continue_final_message": true}', '{"": 1}',
        '{"continue_final_message": "role"}', '{"documents": [{}]}', '{"loop": 1}',
    ),
}  # fmt: skip
FLAGS = ("-n", "-o", "-x", "--", "--nope", "--json=1", "--tok", "-h", "--help", "--version", "@x")
# Each ends soon: what they are given is small, and most are refused before they run.
GOOD: dict[str, tuple[str, ...]] = {
    "export": ("export checkpoint -o out", "export checkpoint -o out --recipe recipe --json"),
    "build": ("build portable --sm 89 --json",),
    "generate": (
        "generate engine abc -n 4 --json", "generate packed --file prompts.jsonl -n 4",
        "generate engine -n 3 --no-chat --json", "generate engine --ids 5,6,7 -n 4",
    ),
    "bench": ("bench engine --prompt-tokens 4 --new-tokens 2 --runs 1 --json",),
    "parity": (
        "parity engine --against checkpoint --json report.json --tokens 8",
        "parity packed --against checkpoint --baseline before.json --html page.html",
        "parity packed --against checkpoint --client hub --tokens 8",
    ),
    "quality": (
        "quality packed --against checkpoint --data corpus.txt --tokens 32 --chunk 16 --json -",
    ),
    "diff": ("diff engine packed --json",),
    "inspect": ("inspect engine --json", "inspect checkpoint --batch 3 --context 50 --json"),
    "verify": ("verify engine --json", "verify packed --key public.pem --json"),
    "sign": ("sign packed --key private.pem --json",),
    "pack": ("pack engine -o out --json", "pack engine --for js -o out --json"),
    "calibrate": (
        "calibrate checkpoint -o out --recipe int8 --data corpus.txt --tokens 32 --chunk 16 --json",
    ),
}  # fmt: skip
SELDOM = {
    "bench": 0.1,
    "build": 0.1,
    "calibrate": 0.3,
    "quality": 0.5,
}  # seconds each; others are 1
STREAMS = {
    "stdin": ("nothing", "closed", "text", "bytes", "endless"),
    "stdout": ("closed", "full", "pipe"),
    "stderr": ("closed", "full", "pipe"),
}


@dataclass
class Line:
    """What is typed: words, the command first, and what the streams are."""

    words: list[str] = field(default_factory=lambda: GOOD["inspect"][0].split())
    streams: dict[str, str] = field(
        default_factory=lambda: {"stdin": "nothing", "stdout": "file", "stderr": "file"}
    )


@dataclass(frozen=True)
class Change:
    """One change of a line."""

    about: str
    change: Callable[[Line], object]

    def __str__(self) -> str:
        return f"{self.about:.120}"


def draw(chance: random.Random) -> Iterable[Change]:
    """Yield a good line, and changes of it."""
    command = chance.choices(list(GOOD), [SELDOM.get(name, 1) for name in GOOD])[0]
    good = chance.choice(GOOD[command])
    yield Change(good, lambda line: line.words.__setitem__(slice(None), good.split()))
    ways = [option] * 12 + [word] * 4 + [stream] * 2 + [gone, flag]
    for _ in range(1 + int(chance.expovariate(0.7))):
        yield chance.choice(ways)(command, good.split(), chance)


def option(command: str, words: list[str], chance: random.Random) -> Change:
    """An option of the command, with a value of its kind or, at times, another."""
    options = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    chosen = chance.choice(options)
    name = chance.choice([*chosen.opts, *chosen.secondary_opts])
    added = [name] if chosen.is_flag else [name, value(chosen, chance)]
    if len(added) == 2 and name.startswith("--") and chance.random() < 0.3:
        added = ["=".join(added)]
    return Change(" ".join(added), lambda line: line.words.extend(added))


def value(chosen: click.Parameter, chance: random.Random) -> str:
    """A value for an option or an argument."""
    paths = [*PATHS, *(() if chosen.name in OUTPUTS else DEVICES)]
    if isinstance(chosen.type, click.Path):
        pools = [INPUTS] * 12 + [paths] * 8 + [TEXTS]
    elif isinstance(chosen.type, click.Choice):
        pools = [list(chosen.type.choices)] * 12 + [TEXTS]
    elif chosen.type in (click.INT, click.FLOAT):
        pools = [USUAL] * 12 + [NUMBERS] * 6 + [TEXTS]
    else:
        pools = [OF_KIND.get(chosen.name or "", TEXTS)] * 12 + [TEXTS] * 2 + [NUMBERS, INPUTS]
    return chance.choice(chance.choice(pools))


def word(command: str, words: list[str], chance: random.Random) -> Change:
    """Another word in the place of one."""
    at = chance.randrange(1, len(words))
    other = chance.choice(chance.choice([PATHS, *[INPUTS] * 4, USUAL, NUMBERS, TEXTS, words]))
    return Change(f"word {at} = {other!r:.60}", lambda line: _put(line, at, [other]))


def gone(command: str, words: list[str], chance: random.Random) -> Change:
    """A word fewer, or its own twice."""
    at, twice = chance.randrange(0, len(words)), chance.random() < 0.3
    about = f"word {at} {'twice' if twice else 'is gone'}"
    return Change(about, lambda line: _put(line, at, line.words[at : at + 1] * 2 * twice))


def flag(command: str, words: list[str], chance: random.Random) -> Change:
    """Something that looks like an option."""
    at, other = chance.randrange(0, len(words) + 1), chance.choice(FLAGS)
    return Change(f"{other} before word {at}", lambda line: line.words.insert(at, other))


def stream(command: str, words: list[str], chance: random.Random) -> Change:
    """A stream that is another thing."""
    name = chance.choice(list(STREAMS))
    kind = chance.choice(STREAMS[name])
    return Change(f"{name} is {kind}", lambda line: line.streams.update({name: kind}))


def _put(line: Line, at: int, words: list[str]) -> None:
    line.words[at : at + 1] = words
