"""The `rope_parameters` of a config.json: which keys each rope_type needs and may have."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from lmcast.graphs.config.inert import Inert
from lmcast.graphs.config.reading import Count, Positive, Size
from lmcast.plugins.annotations import Range

NotNegative = Annotated[float, Range(0, 1e30)]
RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """The `rope_parameters` of a config.json, in Hugging Face's spelling."""

    rope_type: RopeType = "default"
    rope_theta: Positive = 10000.0
    partial_rotary_factor: Annotated[float, Range(1e-6, 1)] = 1.0
    factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    attention_factor: Positive | None = None
    beta_fast: NotNegative | None = None
    beta_slow: NotNegative | None = None
    mscale: NotNegative | None = None
    mscale_all_dim: NotNegative | None = None
    truncate: bool | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    short_factor: tuple[Positive, ...] | None = None
    long_factor: tuple[Positive, ...] | None = None

    def __post_init__(self) -> None:
        needs, allows = KEYS[self.rope_type]
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"rope_type {self.rope_type!r} needs {name}, which is missing")
        for key in fields(RopeParameters):  # not those that a subclass adds
            known = {*needs, *allows, *ALWAYS}
            if key.name not in known and getattr(self, key.name) is not None:
                raise ValueError(f"{key.name} means nothing to rope_type {self.rope_type!r}")
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_type 'yarn' needs rope_theta above 1, not {self.rope_theta}")


@dataclass(frozen=True, kw_only=True)
class FullRope(RopeParameters):
    """Of a family whose heads always rotate whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partial_rotary_factor != 1 and self.rope_type != "proportional":
            raise ValueError(
                f"partial_rotary_factor is {self.partial_rotary_factor};"
                " this architecture rotates whole heads, so only 1 is accepted"
            )


@dataclass(frozen=True, kw_only=True)
class LongRope(RopeParameters):
    """Of a family that rotates as always or by LongRoPE (Phi-3), also where files say "yarn"."""

    rope_type: Literal["default", "longrope"] = "default"


@dataclass(frozen=True, kw_only=True)
class MRope(RopeParameters):
    """Also with how pairs divide among the positions in time, row and column of a picture (M-RoPE),
    which are the same number wherever there is only text."""

    mrope_section: tuple[Count, ...] = (11, 11, 10)
    mrope_interleaved: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mrope_section) != 3:
            raise ValueError(f"mrope_section has {len(self.mrope_section)} entries; accepted: 3")

    def axes(self, pairs: int) -> tuple[int, ...]:
        """Return which of the three positions each of so many pairs turns by: 0, 1 or 2.

        Raises ValueError for sections that are not interleaved, which no release has.
        """
        if not self.mrope_interleaved:
            raise ValueError(
                "rope_parameters.mrope_interleaved is False; accepted where pictures are taken:"
                " true"
            )
        ends = [3 * section for section in self.mrope_section]
        return tuple(pair % 3 if pair < ends[pair % 3] else 0 for pair in range(pairs))


@dataclass(frozen=True, kw_only=True)
class WholeMRope(MRope, FullRope):
    """Of Qwen3-VL, whose heads rotate whole, always by interleaved sections."""

    mrope_section: tuple[Count, ...] = (24, 20, 20)


@dataclass(frozen=True, kw_only=True)
class RopeByLayerType:
    """Of a family whose windowed layers have positions of their own."""

    full_attention: FullRope
    sliding_attention: FullRope


@dataclass(frozen=True, kw_only=True)
class PartialRopeByLayerType:
    """Of such a family whose heads rotate in part."""

    full_attention: RopeParameters
    sliding_attention: RopeParameters


@dataclass(frozen=True, kw_only=True)
class TemperedRope(FullRope):
    """Also with what Temperature reads."""

    llama_4_scaling_beta: float


@dataclass(frozen=True, kw_only=True)
class AxialRope:
    """Of a vision tower, whose patches have places on two axes; files say so, or "default"."""

    rope_type: Literal["axial", "default"] = field(default="axial", compare=False)
    rope_theta: Positive = 10000.0


# Stored there by Hugging Face.
TEMPERED_INERT: Inert = {"rope_parameters.max_position_embeddings": int}

ALWAYS = ("rope_type", "rope_theta", "partial_rotary_factor")
LENGTH = "original_max_position_embeddings"
KEYS: dict[RopeType, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # rope_type: (keys it needs, keys it may have); the first three leave LENGTH unread
    "default": ((), (LENGTH,)),
    "linear": (("factor",), (LENGTH,)),
    "dynamic": (("factor",), (LENGTH,)),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (LENGTH,)),
    "yarn": (
        ("factor",),
        (
            *("attention_factor", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "truncate", LENGTH),
        ),
    ),
    "longrope": (("short_factor", "long_factor"), ("factor", "attention_factor", LENGTH)),
    "proportional": ((), ("factor",)),
}
