"""What differs between two values of JSON, place by place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

SHOWN = 60  # characters of a value


class Absent(Enum):
    """Stands for no value: null is one."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True)
class Change:
    """One place whose value is another; ABSENT on the side that has none."""

    place: str
    before: Any
    after: Any

    def as_json(self) -> dict[str, Any]:
        """Return it without the side that has nothing."""
        sides = {"before": self.before, "after": self.after}
        return {"place": self.place} | {k: v for k, v in sides.items() if v is not ABSENT}

    def text(self) -> str:
        """Return it in a line."""
        if self.before is ABSENT:
            return f"{self.place}: added, {shown(self.after)}"
        if self.after is ABSENT:
            return f"{self.place}: removed, {shown(self.before)}"
        return f"{self.place}: {shown(self.before)} -> {shown(self.after)}"


def shown(value: Any) -> str:
    """Return a value in a few characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def changes(before: Any, after: Any, place: str = "") -> Iterator[Change]:
    """Yield what differs between two values; a list counts by what it holds, and by its order
    where it holds the same."""
    if type(before) is type(after) is dict:
        for key in (*before, *(key for key in after if key not in before)):
            at = f"{place}.{key}" if place else str(key)
            yield from changes(before.get(key, ABSENT), after.get(key, ABSENT), at)
    elif type(before) is type(after) is list and len(before) == len(after) < SHOWN:
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from changes(one, other, f"{place}[{index}]")
    elif type(before) is type(after) is list:
        yield from _of_lists(before, after, place)
    elif type(before) is not type(after) or before != after:
        yield Change(place, before, after)


def _of_lists(before: Sequence[Any], after: Sequence[Any], place: str) -> Iterator[Change]:
    """Yield what one list has that the other lacks; by position they may all differ."""
    old, new = ({repr(item): item for item in items} for items in (before, after))
    removed, added = old.keys() - new.keys(), new.keys() - old.keys()
    yield from (Change(place, item, ABSENT) for text, item in old.items() if text in removed)
    yield from (Change(place, ABSENT, item) for text, item in new.items() if text in added)
    if removed or added:
        return
    if len(before) != len(after):
        yield Change(f"{place}: length", len(before), len(after))
        return
    pairs = enumerate(zip(before, after, strict=True))
    for index, (one, other) in islice(((i, pair) for i, pair in pairs if pair[0] != pair[1]), 1):
        yield Change(f"{place}[{index}], of the same in another order", one, other)
