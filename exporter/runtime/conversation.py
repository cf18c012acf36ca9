"""A conversation in one session: what it has said so far is cached, and not computed again."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmcast.exporter.backends.runner import Runner, SessionError
from lmcast.exporter.runtime.arrays import as_ids, as_integers
from lmcast.exporter.runtime.images import as_images
from lmcast.exporter.runtime.session import Session, Tokens
from lmcast.plugins.arguments import checked, shown


class Conversation:
    """One sequence that each answer begins anew, in the place of a session of one row.

    The prompt of an answer is all that was said, in full. Where it begins with what is cached, the
    rest alone is appended; where a template or a tokenizer has changed the beginning, as templates
    do that drop earlier reasoning, a fresh session computes all of it. So an answer is that of the
    same prompt alone.
    """

    @checked
    def __init__(self, fresh: Callable[[], Session]):
        """fresh: gives an empty session of one row; raises SessionError for one that does not."""
        self._fresh, self._session = fresh, fresh()
        if not isinstance(self._session, Session) or self._session.batch != 1:
            raise SessionError(
                f"fresh gives {shown(self._session)}; accepted: a session of one row, as that of"
                " Engine.conversation"
            )
        # Token ids, and what is in pictures; None after a call that did not end.
        self._held: list[int] | None = []
        self._begins = True

    @property
    def runner(self) -> Runner:
        """What computes it: that of one engine."""
        return self._session.runner

    @property
    def context(self) -> int:
        """The most tokens of the sequence."""
        return self._session.context

    @property
    def cached(self) -> int:
        """How many tokens are cached."""
        return len(self._held or ())

    @checked
    def check_room(self, tokens: Tokens) -> None:
        """Refuse a sequence of more tokens than the context; raises SessionError."""
        self._fresh().check_room(tokens)

    def begin(self) -> None:
        """Let the next call be the prompt of an answer, with all that was said."""
        self._begins = True

    def append(self, input_ids: Any, counts: Any = None, images: Any = None) -> np.ndarray:
        """As Session.append of one row, but for the first call after `begin`.

        Of that one's images, which are of all that was said, only the pictures of what is not
        cached are seen by the tower.
        """
        ids = as_ids(input_ids)
        if len(ids) != 1:
            raise SessionError(f"input_ids has {len(ids)} rows; a conversation has 1")
        if counts is not None and as_integers("counts", counts).tolist() != [ids.shape[1]]:
            raise SessionError(f"counts is {shown(counts)}; accepted: [{ids.shape[1]}]")
        if ids.shape[1] > self.context:
            self.check_room(ids.shape[1])
        (seen,) = as_images(images, 1)
        row, session, held = ids[0].tolist(), self._session, self._held
        said = row if seen is None else seen.keys(row)
        if self._begins:
            if held is None or len(held) >= len(said) or said[: len(held)] != held:
                session, held = self._fresh(), []
            row, said = row[len(held) :], said[len(held) :]
            seen = None if seen is None else seen.after(len(held))
        elif held is None:
            raise SessionError("the call before this one did not end; begin again")
        before, self._held = self._held, None
        try:
            logits = session.append([row], None, *([] if seen is None else [[seen]]))
        except SessionError:  # before anything changed
            self._held = before
            raise
        self._session, self._begins, self._held = session, False, held + said
        return logits
