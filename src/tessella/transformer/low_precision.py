"""The transformer's linear layers in bf16 or int8: a CPU paints large models faster with them.

Only the layers' matrix products are rounded. Norms, attention, embeddings and the logits stay in
fp32, and so do the weights that a model is saved from: a rounded copy stands beside them.

In int8 each output's weights have a scale of their own, and so has each row, found as it comes
(dynamic quantization). A picture then never depends on what it shares a batch with, and sums of
integers are exact, however many threads add them up.

Source: LLM.int8's vector-wise quantization (arXiv:2208.07339, section 3.1), without its outliers.
"""

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.precision import Precision
from tessella.transformer.network import Transformer

T = TypeVar("T", bound=Transformer)

# Products of 8 by 8 bits are summed in pairs, in 16 bits, where a CPU has no VNNI: rows of 7 bits
# cannot overflow these.
_ROW_STEPS = 63
_ROW_ZERO = 64
_WEIGHT_STEPS = 127
_TINY = 1e-12  # of a row or of weights that are zero


class BFloat16Linear(nn.Linear):
    """A linear layer without bias that multiplies in bf16, and sums in fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        """Rounds a layer; its own weights are shared."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self._rounded = linear.weight.detach().bfloat16()

    def forward(self, rows: Tensor) -> Tensor:
        """Multiplies rows (..., D)."""
        return functional.linear(rows.bfloat16(), self._rounded).float()


class Int8Linear(nn.Linear):
    """A linear layer without bias that multiplies in int8, and sums in int32."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantizes a layer; its own weights are shared."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self._packed = _pack(linear.weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        """Multiplies rows (..., D)."""
        largest = rows.abs().amax(-1, keepdim=True).clamp(min=_TINY)
        product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest, 1 / _ROW_STEPS, _ROW_ZERO, self._packed
        )
        return product.mul_(largest)


def lower_precision(transformer: T, precision: Precision) -> T:
    """Copies a transformer to paint with, its layers in another precision.

    Args:
        transformer: on a CPU; its weights are shared with the copy.
        precision: fp32 gives the transformer itself.

    Raises:
        ConfigError: int8, where this PyTorch has no such kernels.
    """
    if precision == "fp32":
        return transformer
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())
    }
    lowered = copy.deepcopy(transformer, shared)
    create = BFloat16Linear if precision == "bf16" else Int8Linear
    parts = [lowered.self_decoder, lowered.cross_decoder, lowered.next_code]
    for parent in [module for part in parts for module in part.modules()]:
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, create(child))
    return lowered


def has_int8() -> bool:
    """Returns whether this PyTorch multiplies int8 on this CPU."""
    try:
        Int8Linear(nn.Linear(8, 8, bias=False))(torch.ones(1, 8))
    except (ConfigError, RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


def _pack(weight: Tensor) -> Any:
    """Quantizes weights (outputs, inputs) to int8, in the order that the kernel reads them.

    Raises:
        ConfigError: this PyTorch has no such kernels.
    """
    scales = weight.abs().amax(1).clamp(min=_TINY) / _WEIGHT_STEPS
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    try:
        with warnings.catch_warnings():
            # PyTorch 2.13 announces the end of this type of tensor. It names no other way to
            # these kernels: decision 0017 says what was tried.
            warnings.filterwarnings("ignore", category=UserWarning, message="torch.quantize_per")
            quantized = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, None)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "This PyTorch has no int8 kernels for this CPU: precision `int8`; "
            f"{torch.__version__} says: {reason.removesuffix('.')}. Choose auto, bf16 or fp32."
        ) from None
