"""Peak memory of a computation and parameters of a model, counted without computing.

Fake tensors have shapes but no data, so full-size networks can be counted on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Meter(TorchDispatchMode):
    """Follows every tensor that is made until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # three of four calls, and none allocates
            return func(*args)
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = weakref.finalize(storage, self._forget, key, size)
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _forget(self, key: int, size: int) -> None:
        self._storages.pop(key, None)
        self.alive -= size


def count_peak(prepare: Callable[[], Callable[[], Any]]) -> float:
    """Peak bytes that a call allocates: activations, gradients and scratch.

    ``prepare`` builds model and inputs, which are not counted, and returns the call that is.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        call = prepare()
        with _Meter() as meter:
            result = call()
        del result
    return float(meter.peak)


def count_per_item(prepare: Callable[[int], Callable[[], Any]], batch: int = 4) -> tuple[float, float]:
    """Bytes needed once, and for each item of a batch, from counts at that batch and half of it.

    The peak is not linear: gradients fill it for small batches, activations for large ones.
    """
    large = max(2, batch)
    small = large // 2
    more, fewer = (count_peak(lambda count=count: prepare(count)) for count in (large, small))  # type: ignore[misc]
    each = (more - fewer) / (large - small)
    return more - large * each, each


def count_parameters(build: Callable[[], torch.nn.Module]) -> tuple[int, int]:
    """Parameters of a model that is never allocated: all, and those that train."""
    with FakeTensorMode():
        parameters = list(build().parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
