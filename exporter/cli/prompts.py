"""Prompts as the command line gives them."""

from typing import Any

import click


def parse_ids(prompt: Any) -> list[int]:
    words = prompt.replace(",", " ").split() if isinstance(prompt, str) else []
    if not words or not all(word.isdecimal() for word in words):
        raise click.UsageError(f"--ids needs token ids such as '1 15 27', got {prompt!r:.80}")
    return [int(word) for word in words]


def with_system(prompt: Any, system: str) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *messages]
