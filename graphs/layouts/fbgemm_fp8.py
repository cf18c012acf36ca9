"""FBGEMM's FP8 (Llama 3.1 405B): E4M3 with a scale for each row."""

from dataclasses import dataclass
from typing import Literal

from lmcast.graphs.config.reading import ConfigError, Positive
from lmcast.graphs.layouts.stored import stored
from lmcast.graphs.layouts.tensors import FLOATS, Found, Tensors, by_part, require_listed
from lmcast.graphs.weights.elements import E4M3


@dataclass(frozen=True, kw_only=True)
class FbgemmFp8:
    """A quantization_config of FBGEMM's FP8; activation_scale_ub bounds what inputs are rounded
    to."""

    quant_method: Literal["fbgemm_fp8"]
    activation_scale_ub: Positive | None = None
    modules_to_not_convert: tuple[str, ...] | None = None

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have scales."""
        modules = tensors.modules("weight_scale")
        if not modules:
            raise ConfigError(
                "quant_method is 'fbgemm_fp8', but no tensor has scales (X.weight_scale)"
            )
        left = self.modules_to_not_convert or ()
        require_listed(modules, tensors, "modules_to_not_convert", left, by_part(left))
        layouts = {
            f"{x}.weight": stored(tensors, x, E4M3, (1, 0), accepted=FLOATS) for x in modules
        }
        return Found(layouts, tensors.activations(layouts))
