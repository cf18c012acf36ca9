"""What drivers share: they read engines and prompts, and write what each client made of them.

A driver knows nothing of lmcast. It is run by the Python of its client's environment:

    DRIVER REQUEST.json ANSWER.json

The request has `new`, the number of tokens to make, and `engines`: name -> `directory`, `prompts`
(lists of token ids). The answer has for each name what came of the prompts one by one (`single`),
and of all in one call (`batch`): lists of token ids, or the error as a text.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[list[int]]
Continue = Callable[[Rows, int], Rows]  # (prompts, new tokens) -> the new tokens of each


def answer(load: Callable[[str], Continue]) -> None:
    """Answer the request of the command line, with what `load` returns for a directory."""
    request, to = sys.argv[1:]
    given = json.loads(Path(request).read_text())
    found = {
        name: tried(load, engine["directory"], engine["prompts"], given["new"])
        for name, engine in given["engines"].items()
    }
    Path(to).write_text(json.dumps(found))


def tried(
    load: Callable[[str], Continue], directory: str, prompts: Rows, new: int
) -> dict[str, Any]:
    def one_by_one() -> Rows:
        return [row for prompt in prompts for row in run([prompt], new)]

    try:
        run = load(directory)
    except Exception as error:  # noqa: BLE001 - of another program, whatever it raises
        return dict.fromkeys(("single", "batch"), said(error))
    return {"single": outcome(one_by_one), "batch": outcome(lambda: run(prompts, new))}


def outcome(call: Callable[[], Rows]) -> Rows | str:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - of another program, whatever it raises
        return said(error)


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"
