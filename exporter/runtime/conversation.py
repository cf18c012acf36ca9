"""A conversation in one session: what it has said so far is cached, and not computed again."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmcast.exporter.runtime.session import Session


class Conversation:
    """One sequence that each answer begins anew, in the place of a session of one row.

    The prompt of an answer is all that was said, in full. Where it begins with what is cached, the
    rest alone is appended; where a template or a tokenizer has changed the beginning, as templates
    do that drop earlier reasoning, a fresh session computes all of it. So an answer is that of the
    same prompt alone.
    """

    def __init__(self, fresh: Callable[[], Session]):
        """fresh: gives an empty session of one row."""
        self._fresh, self._session = fresh, fresh()
        self._held: list[int] | None = []  # token ids; None after a call that did not end
        self._begins = True

    @property
    def context(self) -> int:
        """The most tokens of the sequence."""
        return self._session.context

    @property
    def cached(self) -> int:
        """How many tokens are cached."""
        return len(self._held or ())

    def check_room(self, tokens: int) -> None:
        """Refuse a sequence of more tokens than the context; raises SessionError."""
        self._fresh().check_room(tokens)

    def begin(self) -> None:
        """Let the next call be the prompt of an answer, with all that was said."""
        self._begins = True

    def append(self, input_ids: Any, counts: Any = None) -> np.ndarray:
        """As Session.append of one row, but for the first call after `begin`."""
        row = np.asarray(input_ids)[0].tolist()
        if self._begins:
            held = self._held
            if held is None or len(held) >= len(row) or row[: len(held)] != held:
                self._session, held = self._fresh(), []
            row, self._held, self._begins = row[len(held) :], held, False
        known, self._held = self._held or [], None
        logits = self._session.append([row])
        self._held = known + row
        return logits
