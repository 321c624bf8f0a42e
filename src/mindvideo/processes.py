"""Several processes at work on one study, as ``accelerate launch`` starts them; alone where it did not.

Files are written by the first process only; several machines need a run folder they all see.

Shapes: N rows of the batch, B rows of this process's share.
"""

from __future__ import annotations

import atexit
import gc
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

from mindvideo.errors import SettingError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: some stages are the first one's alone, and take hours."""

_alone: list[bool] = []

# Its successor is not in the oldest torch that is supported.
warnings.filterwarnings("ignore", message="torch.distributed.nn.functional.all_gather is deprecated")


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
    """End the process group while Python still runs.

    Its threads end with its last reference. Where a wrapped model in a cycle still holds the group, that would be when
    the interpreter is gone, and a thread that then frees a tensor aborts the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def is_partner_lost(error: BaseException) -> bool:
    """Whether an error says that another process ended while this one waited for it.

    gloo raises a plain RuntimeError then: the connection was closed, or reset, by the peer.
    """
    is_told = isinstance(error, RuntimeError) and "by peer" in str(error)
    return dist.is_initialized() and (is_told or isinstance(error, dist.DistError))


def count() -> int:
    """How many processes work together at present (the world size)."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def splits_weights() -> bool:
    """Whether processes shard their weights (``accelerate launch --use_fsdp``)."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def rank() -> int:
    """Index of this process, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works as if it were the only one."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if dist.is_initialized() else torch.device("cuda")
    )


def wait() -> None:
    """Wait until every process is here (a barrier)."""
    if count() > 1:
        dist.barrier()


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block runs in the first process, then in the others, which find its files."""
    if not is_first():
        wait()
    try:
        with alone():
            yield
    finally:
        if is_first():
            wait()


def tell(answer: Any) -> Any:
    """The first process's answer, broadcast to all."""
    if count() == 1:
        return answer
    box = [answer]
    dist.broadcast_object_list(box)
    return box[0]


def collect(items: Iterable[Any]) -> list[Any]:
    """Every process's items, gathered in the order of the processes."""
    if count() == 1:
        return list(items)
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, list(items))
    return [item for part in found for item in part]


def rows(n: int) -> slice:
    """Which of ``n`` rows are this process's; all of them where it is alone."""
    if count() == 1:
        return slice(0, n)
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def all_rows(own: torch.Tensor, n: int) -> torch.Tensor:
    """The whole batch (N, ...) from every process's `rows` (B, ...), with gradient."""
    if count() == 1:
        return own
    most = -(-n // count())  # gathered parts are of one size
    padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
    parts = all_gather(padded)
    sizes = [n * (other + 1) // count() - n * other // count() for other in range(count())]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """All-reduce in place: the sum over the processes; a value that is not finite in one is so in all."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor
