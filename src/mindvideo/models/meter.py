"""What a computation costs, counted without doing it: operations, memory moved, and the most memory alive at once.

Models run on fake tensors, which have shapes but no data, so full-size networks can be counted on any machine.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Work:
    """Costs of one call.

    Attributes
    ----------
    flops : float
        Floating-point operations of matrix products, convolutions and attention.
    moved_bytes : float
        Bytes that all other operations read and write.
    operations : float
        Kernel calls.
    peak_bytes : float
        Most memory alive at once that the call itself allocated: activations, gradients and scratch.
    """

    flops: float = 0.0
    moved_bytes: float = 0.0
    operations: float = 0.0
    peak_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        """One call after the other, both results kept."""
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def scaled(self, slope: Work, count: float) -> Work:
        """This and ``count`` times ``slope``; kernel calls stay as they are."""
        return Work(
            self.flops + count * slope.flops,
            self.moved_bytes + count * slope.moved_bytes,
            self.operations,
            self.peak_bytes + count * slope.peak_bytes,
        )


class _Meter(TorchDispatchMode):
    """Adds up every operation that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.operations = self.alive = self.peak = 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note its costs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        is_alias = all(_key(one) in {_key(other) for other in given} for one in made)
        if func.is_view or (is_alias and not func._schema.is_mutable):
            return result  # a view, or a question about a tensor
        self.operations += 1
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        else:
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        for tensor in made:
            self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = weakref.finalize(storage, self._forget, key, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _forget(self, key: int, size: int) -> None:
        self._storages.pop(key, None)
        self.alive -= size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def count_work(prepare: Callable[[], Callable[[], Any]]) -> Work:
    """Costs of the function that ``prepare`` returns; both run on fake tensors.

    Parameters
    ----------
    prepare : callable
        Builds model and inputs, whose memory is not counted, and returns the call to count.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        call = prepare()
        with _Meter() as meter:
            result = call()
        del result
    return Work(meter.flops, meter.moved, meter.operations, meter.peak)


def count_per_item(prepare: Callable[[int], Callable[[], Any]], batch: int = 4) -> tuple[Work, Work]:
    """Costs that come once, and those of each further item of a batch, from batches of ``batch`` and half as many.

    Operations grow in a line; the peak does not: below some batch gradients fill it, above it activations. Take the batch
    that is asked about (two at least).
    """
    large = max(2, batch)
    small = large // 2
    more, fewer = (count_work(lambda count=count: prepare(count)) for count in (large, small))  # type: ignore[misc]
    slope = Work(*((getattr(more, n) - getattr(fewer, n)) / (large - small) for n in Work.__dataclass_fields__))
    return more.scaled(slope, -large), slope


def count_parameters(build: Callable[[], torch.nn.Module]) -> tuple[int, int]:
    """Parameters of a model that is never filled with numbers: all, and those that train."""
    with FakeTensorMode():
        parameters = list(build().parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


@dataclass(frozen=True)
class Machine:
    """What a machine does in a second, measured in about one: matrix products by precision, memory, kernel calls."""

    flops: dict[str, float]
    moved_bytes: float
    call_s: float

    def seconds(self, work: Work, precision: str) -> float:
        """Time of some work at these rates."""
        return work.flops / self.flops[precision] + work.moved_bytes / self.moved_bytes + work.operations * self.call_s


def measure_machine(device: torch.device) -> Machine:
    """Rates of this machine when nothing else runs: of many short calls, the fastest."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        side = 4096 if device.type == "cuda" else 384
        one = torch.randn(side, side, device=device).to(dtype)
        rates[name] = 2 * side**3 / _fastest(lambda one=one: one @ one, device)  # type: ignore[misc]
    large, small = (
        torch.ones(4_000_000, device=device),
        torch.ones(8, device=device),
    )
    moved = 2 * large.numel() * 4 / _fastest(lambda: large + 1.0, device)
    return Machine(rates, moved, _fastest(lambda: [small + 1.0 for _ in range(20)], device) / 20)


def _fastest(call: Callable[[], Any], device: torch.device, wanted_s: float = 0.2) -> float:
    """Seconds of the fastest call among at least ten, over at least ``wanted_s``."""
    seconds: list[float] = []
    while len(seconds) < 10 or sum(seconds) < wanted_s:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
