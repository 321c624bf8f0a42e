"""Several processes at work on one study, as ``accelerate launch`` starts them; alone where it did not.

Every process draws the same global batch from the same seed and computes its own rows of it, so that one process and
several see the same batches, noise and dropout, and their losses add up to the same number. Files are written by the
first process only; several machines need a run folder they all see.

Shapes: N rows of the global batch, B rows of this process's share.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

from mindvideo.errors import SettingError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others; stages that only the first one carries out may take hours."""
BUCKET = 2**25
"""Gradient values added up at a time."""

_global_batch: list[int] = []
_alone: list[bool] = []


def join() -> None:
    """Meet the other processes, where a launcher has started several; a second call does nothing.

    Raises
    ------
    SettingError
        Where several were asked for and one was started.
    """
    if "WORLD_SIZE" not in os.environ and {"MASTER_PORT", "ACCELERATE_DYNAMO_BACKEND"} <= os.environ.keys():
        raise SettingError(
            "expected as many processes as --num_processes asks for, found one: without a GPU 'accelerate launch' starts "
            "several only with --multi_gpu (they meet over gloo); add it"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(timeout=PATIENCE)
        atexit.register(leave)


def leave() -> None:
    """Take leave of the other processes at the end of a program."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Number of processes at work on what is being done."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def splits_weights() -> bool:
    """Whether the launcher asks several processes to split weights among them (``accelerate launch --use_fsdp``)."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def rank() -> int:
    """Number of this process, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works as if it were the only one; the others do something else, or wait."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if dist.is_initialized() else torch.device("cuda")
    )


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        dist.barrier()


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block runs in the first process, then in the others, which find what the first has written."""
    if not is_first():
        wait()
    try:
        with alone():
            yield
    finally:
        if is_first():
            wait()


def tell(answer: Any) -> Any:
    """The first process's answer, in every process."""
    if count() == 1:
        return answer
    box = [answer]
    dist.broadcast_object_list(box)
    return box[0]


def collect(items: Iterable[Any]) -> list[Any]:
    """Every process's items, in the order of the processes."""
    if count() == 1:
        return list(items)
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, list(items))
    return [item for part in found for item in part]


@contextmanager
def global_batch(n: int) -> Iterator[None]:
    """Within, `random_rows` takes this process's share of the numbers drawn for a batch of ``n`` rows."""
    _global_batch.append(n)
    try:
        yield
    finally:
        _global_batch.pop()


def batch_size(n_own: int) -> int:
    """Rows of the batch that ``n_own`` rows are this process's share of; inside `global_batch` only more than those."""
    return _global_batch[-1] if count() > 1 and _global_batch else n_own


def rows(n: int) -> slice:
    """Which of ``n`` rows are this process's; all of them where it is alone."""
    if count() == 1:
        return slice(0, n)
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def weight(n: int) -> float:
    """This process's share of ``n`` rows: means over its rows, times this, add up to the mean over all."""
    own = rows(n)
    return (own.stop - own.start) / n


def random_rows(shape: tuple[int, ...], at: torch.device | str = "cpu") -> torch.Tensor:
    """Uniform numbers of ``shape`` (B, ...): inside `global_batch` those rows of (N, ...) that are this process's."""
    n = batch_size(shape[0])
    drawn = torch.rand((n, *shape[1:]), device=at)
    return drawn[rows(n)] if n != shape[0] else drawn


class _AllRows(torch.autograd.Function):
    """Rows of every process; the gradient of each row is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, n: int) -> torch.Tensor:
        whole = own.new_zeros((n, *own.shape[1:]))
        ctx.own = rows(n)
        whole[ctx.own] = own
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None


def all_rows(own: torch.Tensor, n: int) -> torch.Tensor:
    """The whole batch (N, ...) from every process's rows (B, ...), with gradient.

    What follows is computed in every process alike and must enter the loss divided by `count`.
    """
    return own if count() == 1 else cast(torch.Tensor, _AllRows.apply(own, n))


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the processes, in place; a value that is not finite anywhere is so everywhere."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, many at a time."""
    if count() == 1:
        return
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype
            or sum(gradient.numel() for gradient in bucket) + parameter.grad.numel() > BUCKET
        ):
            _add_up_bucket(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _add_up_bucket(bucket)


def _add_up_bucket(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
