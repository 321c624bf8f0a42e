"""The masked brain model sharded over the processes (FSDP).

``accelerate launch --use_fsdp`` asks for it. Each process keeps its rows of every weight, gradient
and moment; a transformer block's weights are gathered for its own passes. The main process writes
full weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mindvideo import distributed
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.transformer import Block


def shard_weights(model: MaskedBrainModel) -> None:
    """Shard the weights where the launcher asks for it; call before making the optimiser."""
    if not distributed.uses_fsdp():
        return
    mesh = init_device_mesh(model.device.type, (distributed.world_size(),))
    units: list[nn.Module] = [*(module for module in model.modules() if isinstance(module, Block)), model]
    for unit in units:
        # The root's weights too are resharded after the forward pass: validation swaps them for their average.
        sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each process holds a shard of the tensor."""
    return isinstance(tensor, DTensor)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered from its shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Full tensors on the CPU of the main process, gathered one by one."""
    found = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor.detach())
        if distributed.is_main():
            found[name] = full.cpu()
    return found


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A full tensor on the device of ``like``, sharded as that is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    shard = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return shard.to(like.device).clone()  # not a view, which would keep the full tensor alive


def full_model(model: MaskedBrainModel) -> MaskedBrainModel:
    """The model, or, in the main process, a copy of a sharded one with full weights."""
    if not isinstance(model, FSDPModule):
        return model
    weights = full_tensors(model.state_dict())
    if not distributed.is_main():
        return model
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with torch.device("meta"):  # takes no memory and draws no random numbers
        full = MaskedBrainModel(**settings)
    full.load_state_dict(weights, assign=True)
    return full
