"""When two parts of a model have equal traces: a digest of all that a trace depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn

Input = tuple[Any, ...]  # its name, axes and dtype


def fingerprint(module: nn.Module, taken: Mapping[int, Sequence[Input]]) -> str:
    """Return a digest that is equal for modules with equal traces: same classes, settings and
    shapes.

    taken: the table or handoff of each tensor that is an input of the trace, by identity; its
    position and axes count, not where it comes from. A module or tensor that occurs again counts as
    the same one. Attributes that begin with an underscore must follow from others.
    """
    found = _Fingerprint(taken)
    found.feed(module)
    return found.digest.hexdigest()


class _Fingerprint:
    """A digest of the values fed to it."""

    def __init__(self, taken: Mapping[int, Sequence[Input]]):
        self.digest = hashlib.sha256()
        self.taken, self.order, self.met = taken, list(taken), dict[int, int]()

    def write(self, text: str) -> None:
        """Feed a text behind its length: (1, 23) and (12, 3) have the same digits."""
        data = text.encode()
        self.digest.update(b"%d:" % len(data))
        self.digest.update(data)

    def feed(self, value: Any) -> None:
        if id(value) in self.taken:
            axes = [tensor[1:] for tensor in self.taken[id(value)]]
            self.feed((self.order.index(id(value)), axes))
        elif isinstance(value, Tensor | nn.Module):
            self.object(value)
        elif isinstance(value, dict):
            self.write(f"dict of {len(value)}")
            for key, item in value.items():
                self.write(repr(key))
                self.feed(item)
        elif isinstance(value, list | tuple):
            self.write(f"list of {len(value)}")
            for item in value:
                self.feed(item)
        elif callable(value):
            name = f"{value.__module__}.{getattr(value, '__qualname__', '<unnamed>')}"
            bound = isinstance(value, MethodType)  # of an object, which counts too
            assert "<" not in name and not bound, (
                f"{name}: a setting must be a function that its module names"
            )
            self.write(name)
        else:
            text = repr(value)
            assert " at 0x" not in text, f"{text}: a setting must print what it is"
            self.write(text)

    def object(self, value: Tensor | nn.Module) -> None:
        if id(value) in self.met:
            self.write(f"again {self.met[id(value)]}")
            return
        self.met[id(value)] = len(self.met)
        if isinstance(value, Tensor):
            self.write(repr((value.dtype, tuple(value.shape), value.stride(), value.requires_grad)))
            if not value.is_meta:
                self.digest.update(value.numpy(force=True).tobytes())
            return
        self.write(f"{type(value).__module__}.{type(value).__qualname__}")
        for key in sorted(value.__dict__):
            if not key.startswith("_") and key != "training":
                self.write(key)
                self.feed(value.__dict__[key])
        parts = (value._parameters, value._buffers, value._modules)
        for name, part in (item for held in parts for item in held.items()):
            self.write(name)
            self.feed(part)
