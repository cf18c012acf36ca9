"""What `lmcast export` and `lmcast pack` say of an engine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lmcast.exporter.engine.description import said_of


@dataclass(frozen=True)
class Summary:
    """The result of an export, for a person and for a machine."""

    path: str
    architecture: str
    parameters: int
    dtype: str
    target: str
    bytes: int  # of the engine directory
    of_checkpoint: int  # bytes of the files that hold its weights
    linked: tuple[str, ...]  # files of the checkpoint that it points into
    parity: dict[str, Any] | None
    plans: tuple[dict[str, Any], ...] = ()  # file, SMs, bytes
    activations: str = ""  # as engine.json has it
    clients: Mapping[str, str] = field(default_factory=dict)  # the same
    tower: int | None = None  # parameters of what takes pictures
    audio: int | None = None  # of what takes sounds

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def _tower(self) -> str:
        said = f" and {self.tower:,} for pictures" if self.tower else ""
        return said + (f" and {self.audio:,} for sounds" if self.audio else "")

    def text(self) -> str:
        """Return a few lines; the last says whether the engine stands alone."""
        lines = [
            f"{self.architecture}, {self.parameters:,} parameters{self._tower()}, computes in"
            f" {self.dtype}, target {self.target}"
        ]
        lines += [
            f"plan for {', '.join(f'SM{sm}' for sm in plan['sms'])}: {plan['file']},"
            f" {plan['bytes']:,} bytes"
            for plan in self.plans
        ]
        if self.parity is None:
            lines.append("parity: not measured")
        else:
            worst = max(self.parity["results"], key=lambda r: r["error"])
            of = " of the portable graph" if self.plans and self.parity["ran"] == "graph" else ""
            lines.append(
                f"parity{of}: within {worst['error']:.1e} of fp64 (eager:"
                f" {worst['eager_error']:.1e}; allowed {worst['bound']:.1e})"
            )
            # Where inputs are rounded, both are far from fp64: what tells is the graph without.
            lines += [
                f"  without rounding of inputs: within {r['error']:.1e} (allowed {r['bound']:.1e})"
                for r in self.parity["results"]
                if r["scenario"] == "exact"
            ]
        if self.activations == "int8":
            cost = self.parity and self.parity.get("rounding")
            lines.append(
                "kernels round inputs of products to int8; --activations exact or --exact does not"
                + (f": KL {cost['kl']:.2g} nats, {cost['tokens']} tokens of {cost['text']}" if cost
                   else "")
            )  # fmt: skip
        if self.linked:
            files = self.linked[0] if len(self.linked) == 1 else f"{len(self.linked)} files"
            lines.append(
                f"{self.path}: {self.bytes:,} bytes, linked to {files}; keep it in place, or run"
                f" `lmcast pack {self.path}` before shipping"
            )
        else:
            times = f"{self.bytes / self.of_checkpoint:.2f} times the checkpoint's"
            lines.append(f"{self.path}: {self.bytes:,} bytes, {times}, self-contained")
        return "\n".join([*lines, *said_of(self.clients, self.tower is not None)])
