"""The frozen base in 8 or 4 bits under a LoRA adapter, or the products of trained weights in 8, and back.

4 bits is QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4 in blocks of 64 weights whose scales are themselves kept in 8 bits. It is
bitsandbytes that packs and unpacks, so the base is bit for bit what `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
bnb_4bit_use_double_quant=True)` makes of the same model, and an adapter trained here stands on it anywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, library, nn

from burnish.errors import RecipeError
from burnish.model import fp8
from burnish.model.adapters import is_adapters
from burnish.model.fast import decoder_layers
from burnish.model.frozen import FrozenLinear
from burnish.model.starts import begin_with_loss

BLOCK, SCALES_BLOCK = 64, 256  # weights that share a scale, scales that share one


class Nf4Linear(FrozenLinear):
    """A frozen linear layer in bitsandbytes' format, unpacked to bf16 for each product.

    weight (out * in / 2, 1) uint8, two weights a byte; absmax (out * in / 64,) uint8, the scales of blocks; nested_absmax, nested_code and
    offset, what those scales are made of; code (16,) the values of 4 bits.
    """

    weight: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_code: Tensor
    offset: Tensor
    code: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            linear.weight.detach(), quant_type="nf4", compress_statistics=True, blocksize=BLOCK
        )
        found = {"weight": packed, "absmax": state.absmax, "nested_absmax": state.state2.absmax}
        found |= {"nested_code": state.state2.code, "offset": state.offset, "code": state.code}
        for name, value in found.items():
            self.register_buffer(name, value)

    def stored(self) -> tuple[Tensor, ...]:
        return self.weight, self.absmax, self.nested_absmax, self.nested_code, self.offset, self.code

    def dense(self) -> Tensor:
        return unpacked(self.stored(), self.in_features)

    @staticmethod
    def forward_product(rows: Tensor, *stored: Tensor) -> Tensor:
        return rows @ torch.ops.burnish.unpacked(stored, rows.shape[1], False).to(rows.dtype).T

    @staticmethod
    def backward_product(slope: Tensor, *stored: Tensor) -> Tensor:
        inner = 2 * stored[0].numel() // slope.shape[1]
        return slope @ torch.ops.burnish.unpacked(stored, inner, True).to(slope.dtype)


class Nf4Fp8Linear(Nf4Linear):
    """The same where the card multiplies 8 bits and rows are whole blocks: unpacked to e4m3, which adds little to the error of 4 bits.

    scale (out, 1) float32, as `fp8` has it.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.register_buffer("scale", fp8.by_row(self.dense())[1])

    def stored(self) -> tuple[Tensor, ...]:
        return *super().stored(), self.scale

    def dense(self) -> Tensor:
        return unpacked(Nf4Linear.stored(self), self.in_features)

    @staticmethod
    def forward_product(rows: Tensor, *stored: Tensor) -> Tensor:
        weight = torch.ops.burnish.unpacked_e4m3(stored, rows.shape[1], False)
        return fp8.forward_product(rows, weight, stored[-1])

    @staticmethod
    def backward_product(slope: Tensor, *stored: Tensor) -> Tensor:
        inner = 2 * stored[0].numel() // slope.shape[1]
        turned = torch.ops.burnish.unpacked_e4m3(stored, inner, True)
        return fp8.backward_product(slope, turned, stored[-1])


def unpacked(stored: Sequence[Tensor], columns: int) -> Tensor:
    """(out, in) in bf16, from what `Nf4Linear` stores, by bitsandbytes. columns: in."""
    weight, *scales, _ = stored
    shape = [2 * weight.numel() // columns, columns]
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        weight, _scales(*scales), BLOCK, "nf4", shape, torch.bfloat16
    )
    return found


def _scales(absmax: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor) -> Tensor:
    """(out * in / 64,) float32 scales of the blocks."""
    nested = torch.ops.bitsandbytes.dequantize_blockwise
    found: Tensor = nested(absmax, nested_absmax, nested_code, SCALES_BLOCK, torch.float32) + offset
    return found


# Unpacking is one operation for a compiler. `again` says that it is the backward pass that asks: were both askings the same to a compiler,
# it would keep the first one's answer for the second, and with it every weight in full.


@library.custom_op("burnish::unpacked", mutates_args=())
def _unpacked(stored: Sequence[Tensor], columns: int, again: bool) -> Tensor:
    return unpacked(stored, columns)


@_unpacked.register_fake
def _(stored: Sequence[Tensor], columns: int, again: bool) -> Tensor:
    return _like(stored, columns, torch.bfloat16)


@library.custom_op("burnish::unpacked_e4m3", mutates_args=())
def _unpacked_e4m3(stored: Sequence[Tensor], columns: int, turned: bool) -> Tensor:
    """(out, in), or (in, out) turned around, as the backward pass multiplies it."""
    *packed, scale = stored
    if scale.is_cuda:
        from burnish.model.kernels import unpack_e4m3

        return unpack_e4m3(stored, columns, BLOCK, SCALES_BLOCK, turned)
    rounded = (unpacked(packed, columns).float() / scale).to(fp8.E4M3)
    return rounded.T.contiguous() if turned else rounded


@_unpacked_e4m3.register_fake
def _(stored: Sequence[Tensor], columns: int, turned: bool) -> Tensor:
    like = _like(stored, columns, fp8.E4M3)
    return like.new_empty(like.shape[::-1]) if turned else like


def _like(stored: Sequence[Tensor], columns: int, dtype: torch.dtype) -> Tensor:
    return stored[0].new_empty((2 * stored[0].numel() // columns, columns), dtype=dtype)


def quantize(model: Any, kind: Literal["fp8", "nf4"], *, device: torch.device | None = None) -> int:
    """Put the base of every adapted layer into 8 or 4 bits, one after the other. Returns how many.

    In a model without adapters, whose own weights are trained, the layers' products are done in 8 bits and nothing is stored in them.

    device: where each layer's weight is moved first, so that no more than one is there in full. Layers whose sides the card cannot
    multiply in 8 bits stay as they are. Raises RecipeError where there are no others, and for weights of 4 bits that were to be trained.
    """
    if kind == "fp8" and not any(is_adapters(name) for name, _ in model.named_parameters()):
        return _round_products(model)
    if kind == "nf4" and not has_bitsandbytes():
        raise without_bitsandbytes("nf4", "train.precision")
    from burnish.model.lora import LoraLinear  # which imports PEFT

    adapted = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    suited = [layer for layer in adapted if fp8.suits(layer.base_layer)]
    if not suited:
        if adapted:
            raise _no_sides("layer with an adapter", kind)
        where = f"train.precision ({kind})"
        raise RecipeError("no layer has an adapter", where=where, hint="--set adapter.method=lora")
    for layer in suited:
        base: Any = layer.base_layer
        stored = _kind_of(kind, device or base.weight.device, base)(base.to(device))
        layer.base_layer = stored
        if layer.from_loss:
            begin_with_loss(layer, base.weight.detach().float() - stored.dense())
    return len(suited)


def _round_products(model: Any) -> int:
    found = [
        (part, name)
        for layer in decoder_layers(model)
        for part, name in _linears(layer)
        if fp8.suits(getattr(part, name))
    ]
    if not found:
        raise _no_sides("layer", "fp8")
    for part, name in found:
        setattr(part, name, fp8.Fp8Products(getattr(part, name)))
    return len(found)


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, FrozenLinear) for module in model.modules())


def unquantize(model: nn.Module) -> None:
    """Ordinary linear layers again, with the weights that were computed with; those that were trained were never rounded."""
    for part, name in _linears(model):
        if isinstance(layer := getattr(part, name), FrozenLinear | fp8.Fp8Products):
            setattr(part, name, layer.plain())


def _linears(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of every linear layer, of whatever kind."""
    kinds = nn.Linear | FrozenLinear
    return [(part, name) for part in model.modules() for name, own in part.named_children() if isinstance(own, kinds)]


def _no_sides(what: str, kind: str) -> RecipeError:
    found = f"no {what} has sides that are multiples of {fp8.MULTIPLE}"
    return RecipeError(found, where=f"train.precision ({kind})", hint="--set train.precision=bf16")


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def without_bitsandbytes(what: str, where: str, *, otherwise: str = "") -> RecipeError:
    """The error for something that needs bitsandbytes. where: the recipe's key; otherwise: a value of it that does not."""
    hint = "pip install bitsandbytes" + (f"   or --set {where}={otherwise}" if otherwise else "")
    return RecipeError(f"{what} needs bitsandbytes, which is not installed", where=where, hint=hint)


def _kind_of(kind: str, device: torch.device, base: nn.Linear) -> Any:
    if kind == "fp8":
        return fp8.Fp8Linear
    # A block that goes on into the next row has no one scale in 8 bits.
    return Nf4Fp8Linear if fp8.multiplies(device) and base.in_features % BLOCK == 0 else Nf4Linear
