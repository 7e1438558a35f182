"""A frozen base in four bits, by bitsandbytes: what was quantised and how, loaded again or given back in float32.

An adapter that was trained on such a base belongs to the values that the four bits hold, not to those of the
original weights. `quantized_base.json` beside the adapter says so; whoever serves or merges it reads that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.errors import ModelError, nearest
from imprint.extras import needs

FILE = "quantized_base.json"
BLOCK = 64  # weights that share a scale; bitsandbytes' own choice, and the paper's


@dataclass(frozen=True)
class Quantized:
    """How a base is held: its linear layers but the output matrix, those in `skip` and `uneven` ones, from float32.

    `layers` are the modules that were quantised, by their names in the transformers model; empty until it is loaded.
    """

    type: str = "nf4"
    double: bool = True  # the scales of the blocks are quantised too
    skip: tuple[str, ...] = ()
    block: int = BLOCK
    library: str = "bitsandbytes"
    version: str = ""
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        double = " with double quantisation" if self.double else ""
        skipped = f", but {', '.join(self.skip)}" if self.skip else ""
        return f"{self.type}{double}, in blocks of {self.block} (bitsandbytes {self.version}){skipped}"


def bitsandbytes() -> Any:
    """The package; RecipeError with what to install where it is missing."""
    return needs("bitsandbytes", "qlora", "method=qlora")


def quantized_as(type: str, double: bool, skip: Sequence[str]) -> Quantized:
    """What a recipe asks for, by the bitsandbytes that is installed."""
    return Quantized(type, double, tuple(skip), version=str(bitsandbytes().__version__))


def loading_options(quantized: Quantized, config: Any, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' from_pretrained, which quantises each matrix as it is read, on `device`.

    ModelError where `skip` names no linear layer, or the base is quantised already.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    bitsandbytes()
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "this model is quantised already",
            found="quantization_config in its config.json",
            expected="the original weights: method=qlora quantises them itself",
            fix="give the model that it was made from",
        )
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)
    head = empty.get_output_embeddings()
    linear = {name: module for name, module in empty.named_modules() if _is_linear(module)}
    missing = [end for end in quantized.skip if not any(f".{name}".endswith(f".{end}") for name in linear)]
    if missing:
        names = {name.rpartition(".")[2] for name in linear}
        guess = nearest(missing[0], names)
        raise ModelError(
            "quantization.skip names layers that this model does not have",
            found=", ".join(missing),
            expected=f"names among: {', '.join(sorted(names))}",
            fix=f"quantization.skip=[{guess}]" if guess else "leave it out",
        )
    kept = [
        name
        for name, module in linear.items()
        if module is head or uneven(module) or any(f".{name}".endswith(f".{end}") for end in quantized.skip)
    ]
    if len(kept) == len(linear):
        raise ModelError(
            "no layer of this model would be held in four bits",
            found=f"{len(linear)} linear layers: the output matrix, those in quantization.skip, and "
            f"{sum(map(uneven, linear.values()))} whose width is no multiple of {quantized.block}",
            fix="method=lora, or fewer layers in quantization.skip",
        )
    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantized.type,
            bnb_4bit_use_double_quant=quantized.double,
            bnb_4bit_compute_dtype=torch.float32,
            # patterns of regular expressions, and ends of names: these are whole names
            llm_int8_skip_modules=[re.escape(name) for name in kept] or ["no layer has this name"],
        ),
    }


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def uneven(module: nn.Module) -> bool:
    """Whether the blocks of a layer would cross its rows.

    bitsandbytes 0.50 takes the wrong scales for such blocks on a processor (decision 0025), so these layers are left.
    """
    weight: Any = module.weight
    return bool(weight.shape[1 if isinstance(module, nn.Linear) else 0] % BLOCK)


def four_bit_layers(model: nn.Module) -> dict[str, Any]:
    """The quantised layers of a model, by name; not PEFT's layers around them."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: module for name, module in linear if hasattr(module.weight, "quant_state")}


def settle_layers(model: nn.Module) -> None:
    """Have quantised layers compute as any other: in the type of what comes in, training or not.

    By themselves they fix on the type of their first input, and where the processor multiplies bfloat16 they
    lay their weights out anew at the first evaluation, for kernels that training does not have.
    """
    for layer in four_bit_layers(model).values():
        layer.compute_dtype, layer.compute_type_is_set = None, True
        layer.support_avx512bf16_for_cpu = False


def multiply_in(layer: Any, dtype: torch.dtype) -> None:
    """Have a quantised layer make its weights in `dtype`, and multiply in that."""
    layer.compute_dtype = layer.weight.quant_state.dtype = dtype


@torch.no_grad()
def unpack_layers(model: nn.Module) -> int:
    """Put ordinary layers, with the values that the four bits hold in float32, in the place of quantised ones.

    How many there were. Under PEFT's layers too, whose adapters go on as they did.
    """
    layers = four_bit_layers(model)
    for name, layer in layers.items():
        state = layer.weight.quant_state
        state.dtype = torch.float32
        values = bitsandbytes().functional.dequantize_4bit(layer.weight.data, state)
        with torch.device("meta"):
            plain = nn.Linear(values.shape[1], values.shape[0], bias=False)
        plain.weight = nn.Parameter(values, requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    return len(layers)


def num_weights(parameter: Tensor) -> int:
    """Weights in a parameter; of four-bit ones more than bytes."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


@torch.no_grad()
def held_values(weight: Tensor, quantized: Quantized) -> Tensor:
    """What the four bits hold of a matrix [out, in]: the values, float32, that the adapter was trained on.

    To be used, for each of `layers`, where an adapter is merged in high precision. gpt2's Conv1D keeps its matrices
    [in, out], and quantises them the other way round: they are to be turned before and after.
    """
    assert weight.shape[1] % quantized.block == 0, "uneven layers are not quantised"
    functional = bitsandbytes().functional
    packed, state = functional.quantize_4bit(
        weight.to(torch.float32).contiguous(),
        blocksize=quantized.block,
        compress_statistics=quantized.double,
        quant_type=quantized.type,
    )
    made: Tensor = functional.dequantize_4bit(packed, state)
    return made


def write_quantized(folder: Path, quantized: Quantized) -> None:
    """Say beside an adapter what it was trained on."""
    text = json.dumps(asdict(quantized), indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_quantized(folder: Path) -> Quantized | None:
    """What an adapter was trained on; None where its base was not quantised."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Quantized(**{**found, "skip": tuple(found["skip"]), "layers": tuple(found["layers"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            "what the adapter was trained on cannot be read",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            fix="take the file from the run that made the adapter",
        ) from error
