"""Weights, gradients and optimiser moments of the masked brain model split over the processes (FSDP).

``accelerate launch --use_fsdp`` asks for it. Every process keeps its rows of each weight, and of its gradient, moments
and average; a transformer block's weights are brought together for that block's own passes. Checkpoints and models are
written whole by the first process, so that they are those of a run that splits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mindvideo import processes
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.transformer import Block


def split_weights(model: MaskedBrainModel) -> None:
    """Leave this process its part of every weight, where the launcher asks for it; before the optimiser is made."""
    if not processes.splits_weights():
        return
    mesh = init_device_mesh(model.device.type, (processes.count(),))
    units: list[nn.Module] = [*(module for module in model.modules() if isinstance(module, Block)), model]
    for unit in units:
        # The model's own weights too are let go after its forward pass: validation exchanges them for their average.
        part = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def is_split(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of which every process has a part."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, its parts brought together from every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors in the first process's main memory, brought together one at a time; in the others none."""
    found = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if processes.is_first():
            found[name] = together.cpu()
    return found


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of ``like``, and split as that is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    part = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return part.to(like.device).clone()  # not a view that keeps the whole tensor alive


def whole_model(model: MaskedBrainModel) -> MaskedBrainModel:
    """The model to save: itself, or in the first process one with whole weights in main memory."""
    if not isinstance(model, FSDPModule):
        return model
    weights = gather(model.state_dict())
    if not processes.is_first():
        return model
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with torch.device("meta"):  # takes no memory and draws no random numbers
        unsplit = MaskedBrainModel(**settings)
    unsplit.load_state_dict(weights, assign=True)
    return unsplit
