"""An optimizer's state as named tensors, and back: whatever the optimizer keeps for a parameter.

Each value is named `PARAMETER/SLOT`. A Python number (bitsandbytes counts steps in one) becomes an int64
tensor without dimensions, which no optimizer here keeps by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imprint.distributed.shard import copy_whole, whole
from imprint.train.optim import Optimizer, parts


def slots_to_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, no two in one place; `names` are those of the parameters, by id."""
    found: dict[str, Tensor] = {}
    for part in parts(optimizer):
        for parameter, slots in part.state.items():
            for slot, value in slots.items():
                found[f"{names[id(parameter)]}/{slot}"] = _saved(value)
    places: dict[int, str] = {}
    for (
        name,
        tensor,
    ) in found.items():  # bitsandbytes keeps one table for all parameters; safetensors wants copies
        if tensor.numel() and places.setdefault(tensor.data_ptr(), name) != name:
            found[name] = tensor.clone()
    return found


def _saved(value: Any) -> Tensor:
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int64)
    return whole(value.detach()).cpu().contiguous()


@torch.no_grad()
def tensors_to_slots(tensors: Mapping[str, Tensor], optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Put what `slots_to_tensors` gave into the optimizer, in the place of all that it knows."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, slot = name.rpartition("/")
        grouped.setdefault(parameter, {})[slot] = tensor
    for part in parts(optimizer):
        part.state.clear()
        for group in part.param_groups:
            for parameter in group["params"]:
                # without any: it never had a gradient, a part of the model that text does not reach
                if slots := grouped.get(names[id(parameter)]):
                    part.state[parameter] = {slot: _restored(v, parameter) for slot, v in slots.items()}


def _restored(value: Tensor, parameter: nn.Parameter) -> Any:
    if value.dtype == torch.int64 and value.dim() == 0:
        return int(value)
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    made = torch.zeros_like(parameter, dtype=value.dtype)  # sharded as the parameter is
    copy_whole(made, value)
    return made
