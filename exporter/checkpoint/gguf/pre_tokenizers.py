"""How byte-level tokenizers split a text before they merge: by llama.cpp's names, in the regular
expressions of the models' own tokenizer.json."""

from dataclasses import dataclass

from lmcast.exporter.checkpoint.tokenizers.parts import LLAMA3, QWEN2, WORDS
from lmcast.exporter.checkpoint.tokenizers.tiktoken import KIMI


@dataclass(frozen=True)
class Pre:
    """One pre-tokenizer.

    splits: the expressions that divide a text, one after the other. ignore_merges: a whole piece
    that is a token is taken as it is. nfc: the text is normalized first. bos: one is put first
    where the file does not say.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    bos: bool = False


DIGIT = r"\p{N}"
ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN35 = SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + ENDS


def cased(short: str, numbers: str) -> str:
    """Words of capitals and small letters, and what may follow them; numbers."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{upper}*{lower}+{short}|{before}{upper}+{lower}*{short}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + ENDS


GPT4O = cased(f"{SHORT}?", r"\p{N}{1,3}")
TEKKEN = cased("", DIGIT)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + ENDS,
)

# llama.cpp's names. Others are refused: it has them, but the tokenizers of their models were not
# at hand to compare with.
PRE = {
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-v3": Pre(DEEPSEEK3),
    "dbrx": Pre((LLAMA3,)),
    "glm4": Pre((LLAMA3,), ignore_merges=True),
    "gpt-2": Pre((WORDS,)),
    "gpt-4o": Pre((GPT4O,)),
    "granite-docling": Pre((WORDS,)),
    "kimi-k2": Pre((KIMI,)),
    "llama-bpe": Pre((LLAMA3,), ignore_merges=True, bos=True),
    "llama3": Pre((LLAMA3,), ignore_merges=True, bos=True),
    "llama-v3": Pre((LLAMA3,), ignore_merges=True, bos=True),
    "llama4": Pre((GPT4O,)),
    "minimax-m2": Pre((GPT4O,), nfc=True),
    "qwen2": Pre((QWEN2,), nfc=True),
    "qwen35": Pre((QWEN35,), nfc=True),
    "refact": Pre((DIGIT, WORDS)),
    "smaug-bpe": Pre((LLAMA3,)),
    "smollm": Pre((DIGIT, WORDS)),
    "starcoder": Pre((DIGIT, WORDS)),
    "tekken": Pre((TEKKEN,), ignore_merges=True, bos=True),
}
