"""Sharding with FSDP2, and whole tensors out of shards again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from imprint.distributed.mesh import Mesh


def shard(model: nn.Module, mesh: Mesh) -> nn.Module:
    """Split parameters, gradients and optimizer state over the mesh; one process is left as it is.

    Each of the backbone's repeated layers is one unit, the rest another. FSDP2 averages
    gradients over ranks: the step multiplies its loss by the number of ranks.
    """
    if mesh.size == 1:
        return model
    devices = init_device_mesh(mesh.device.type, (mesh.size,))
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList) and len(module) and _is_layers(module):
            for layer in module:
                fully_shard(layer, mesh=devices)
    fully_shard(model, mesh=devices)
    for method in ("generate", "hidden", "logprobs"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    return model


def _is_layers(module: nn.ModuleList) -> bool:
    """Whether these are a transformer's layers: alike, and each with an attention or mixer inside."""
    kinds = {type(layer).__name__ for layer in module}
    return len(kinds) == 1 and any(word in next(iter(kinds)) for word in ("Layer", "Block"))


def reshard(model: nn.Module) -> None:
    """Put away the whole parameters that a forward without a backward (validation, answers) leaves behind."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copy_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    source: Any = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        source = distribute_tensor(source, target.device_mesh, target.placements)
    target.copy_(source)
