"""Texts that tokenizers read differently where they can: one row a feature."""

# Samples of scripts; what they say does not matter.
SCRIPTS = {
    "Latin": "The naïve façade of Straße №5, ĳs and ﬁne œuvre; İstanbul ışık",
    "Greek": "Το γρήγορο ΑΛΕΠΟΎ πηδάει πάνω από τον σκύλο",
    "Cyrillic": "Съешь ещё этих мягких французских булок",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ",
    "Hebrew": "כל בני אדם נולדו בְּנֵי חוֹרִין",
    "Arabic": "يُولَدُ جميع الناس أحرارًا، ٢٠٢٤",
    "Devanagari": "सभी मनुष्यों को गौरव १२३ क्षेत्र",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে",
    "Tamil": "மனிதப் பிறவியினர் சகலரும்",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "Khmer": "មនុស្សទាំងអស់កើតមក",
    "Tibetan": "འགྲོ་བ་མིའི་རིགས་རྒྱུད",
    "Georgian": "ყველა ადამიანი იბადება ᲗᲐᲕᲘᲡᲣᲤᲐᲚᲘ",
    "Ethiopic": "የሰው ልጅ ሁሉ ሲወለድ",
    "Hangul": "모든 인간은 태어날 때부터 자유로우며 \u1112\u1161\u11ab",
    "Han": "人人生而自由，在尊严和权利上一律平等。𠀀𪚥",
    "Kana": "すべての人間は、ｶﾞｷﾞ生まれながらにしてトテモ自由",
    "Mixed": "GPT模型的token数是1024个，日本語abc한국어",
}
RUNS = (" ", "\t", "\n", "\r\n", " \n", "=", "a", "ab", "é", "日", "👍", "0", "▁", "\u00a0", "-_")
COUNTS = (2, 3, 4, 5, 17, 40, 301)
SPACES = (
    "", " ", "  ", "\n", " x", "x ", "  x  ", "x  y   z", "\n x", " \n\n  x", "x \t y", "x\r\ny\rz",
    "\u3000x\u3000", "x\u2003y", "\u200bx", "\ufeffx", "x\u2028y\u2029z", "\x85x\x0b\x0c", "▁",
    "x▁y",
    "▁▁ ▁", " ▁ ", "▁▁s", "b▁▁▁\ny", "   ▁▁  x",
)  # fmt: skip
WORDS = (
    "can't we'll I'M you'Re IT'S o've x'd 'tis", "l’été aujourd’hui", "'sſ K 'ſ", "rock'n'roll''s",
    "CamelCaseHTTPServerError2xx snake_case_name kebab-case", "ABCdef ÀÉÎ àéî ǅ ʰ ª", "ﬀ ß ẞ ŉ ǰ",
    "(a) [b] {c} <d> \"e\" 'f' `g`", "a,b.c;d:e!f?", "http://x.org/a?b=c&d=%20#e", "...///---===",
)  # fmt: skip
# Of no corpus that a vocabulary is trained on.
UNTRAINED = ("<0x41>", "<u><0x42>", "<u><0x5C>", "zqxzqx", "zqxzqx zqxzqxzqx", "ⱥⱦⱨ", "xⱥⱦⱨⱥ ⱥ")
NUMBERS = (
    *("1234567890"[:n] for n in range(1, 11)), "3.14159", "1,000,000", "0x1F", "1e-9", "٣٤٥٦",
    "१२३४",
    "²³⅓ⅷ", "１２３４", "12ab34", "-1 +2", "𝟘𝟙𝟚𝟛",
)  # fmt: skip
MARKS = (
    "e\u0301", "é", "q\u0323\u0307", "\u0301x", "a\u0300\u0301\u0302\u0303", "Z͑ͫ̓ͪ̂ͫ̽a̵̼l͖g̻o",
    "\u20ddx",
    "न\u093c", "u\u0308\u0304",
)  # fmt: skip
EMOJI = (
    "😀", "👍🏽", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇫🇷🇩🇪", "1️⃣", "❤️",
    "a😀b 😀 c", "🧑🏿\u200d🚀!",
    "🏴\U000e0067\U000e0062\U000e007f",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x ** 2  # power\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] = b->c[i] << 2;\n\t}\r\n",
    "SELECT * FROM t WHERE a != 'b''c' -- d\n", '{"a": [1, 2.5e-3, null], "b\\n": "\\u00e9"}',
    "<p class='x'>&nbsp;</p>\n<!-- y -->", "\\frac{a}{b} $x_1^2$ \\\\",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "#!/bin/sh\nls -la ~/x | grep '^d' > /dev/null 2>&1\n", "x = y if z else `w`; /* v */ // u",
)  # fmt: skip
UNICODE = (
    *("".join(map(chr, range(start, start + 32))) for start in range(0, 256, 32)),
    "\u202eabc\u202c \u2066x\u2069", "\ue000\uf8ff", "\uffff\U0010ffff\ufdd0", "\ufffd",
    "\u00ad\u034f",
    "\U0001f600\ufe0f\ufe0e", "𝓐𝔅ℂ", "\u0378\u0e3a", "𐍈𒀀𓀀", "<0x0A>", "<0x41>x <0xE6>",
    "\u2581\u2582", "‖∑∞≠", "‘’“”–—…",
)  # fmt: skip
# Every 41st character, alone between letters and digits: what a class of an expression takes in.
CLASSES = [chr(code) for code in range(0x20, 0x32000, 41) if not 0xD800 <= code < 0xE000]
LONG = (
    "".join(f"a{c}B{c}1{c} " for c in CLASSES),
    "".join(f"日{c}\n" for c in CLASSES),
    "x" * 20_000,
    " " * 5_000 + "y",
    "word " * 4_000,
    "日本" * 5_000,
    "aB1 \n" * 2_000,
)

TEXTS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *SCRIPTS.values(),
            *(text.upper() for text in SCRIPTS.values()),
            *(f" {text[:9]}  {text[9:]}7 " for text in SCRIPTS.values()),
            *(run * count for run in RUNS for count in COUNTS),
            *SPACES,
            *WORDS,
            *UNTRAINED,
            *NUMBERS,
            *MARKS,
            *EMOJI,
            *CODE,
            *UNICODE,
            *LONG,
        )
    )
)


def with_tokens(*tokens: str) -> tuple[str, ...]:
    """Texts with tokens that mean something, where a user would write them and where none would."""
    first, last = tokens[0], tokens[-1]
    between = (f"{token} a{token}b {token}\n{token}{token}  " for token in tokens)
    return (
        first, f" {first}", f"{first}x", f"x{last}", f"x {last} y", f"{first}{last}", first[:-1],
        f"{first[:-1]} >", "".join(tokens), " ".join(tokens), f"{first}\n\n{last}",
        f"x{first}  y  ",
        f"é{first}日{last}😀", *between,
    )  # fmt: skip
