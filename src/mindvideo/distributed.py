"""Several processes at work on one study, as ``accelerate launch`` starts them.

Calls are named as in torch.distributed and do nothing in a single process. Only the main process
writes files. Shapes: N rows of the batch, B rows of this process.
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
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient

from mindvideo.errors import SettingError

TIMEOUT = timedelta(days=7)
"""How long a process waits for others: some stages run in the main one alone."""

_alone: list[bool] = []

# Its successor is not in the oldest torch that is supported.
warnings.filterwarnings("ignore", message="torch.distributed.nn.functional.all_gather is deprecated")


def init_process_group() -> None:
    """Join the other processes where a launcher has started several, once.

    SettingError where several were asked for and one was started.
    """
    if "WORLD_SIZE" not in os.environ and {"MASTER_PORT", "ACCELERATE_DYNAMO_BACKEND"} <= os.environ.keys():
        raise SettingError(
            "expected as many processes as --num_processes asks for, found one: without a GPU 'accelerate launch' starts "
            "several only with --multi_gpu (they meet over gloo); add it"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(timeout=TIMEOUT)
        atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    """While Python still runs: a wrapped model in a reference cycle would keep the group's threads alive
    beyond the interpreter, and one that then frees a tensor aborts the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error says that another process ended while this one waited for it.

    gloo raises a plain RuntimeError then: the connection was closed, or reset, by the peer.
    """
    says_peer = isinstance(error, RuntimeError) and "by peer" in str(error)
    return dist.is_initialized() and (says_peer or isinstance(error, dist.DistError))


def world_size() -> int:
    """How many processes there are; 1 within `alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def uses_fsdp() -> bool:
    """Whether the processes shard the weights (``accelerate launch --use_fsdp``)."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def rank() -> int:
    """Index of this process, 0 for the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, this process works as if it were the only one."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if dist.is_initialized() else "cuda")


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process, then in the others, which find its files."""
    if not is_main():
        barrier()
    try:
        with alone():
            yield
    finally:
        if is_main():
            barrier()


def broadcast(value: Any) -> Any:
    """The main process's value, in all of them."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def all_gather(items: Iterable[Any]) -> list[Any]:
    """The items of all processes, in order of rank."""
    parts: list[Any] = [list(items)] * world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, parts[0])
    return [item for part in parts for item in part]


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def own_rows(n: int) -> slice:
    """Which of ``n`` rows are this process's."""
    return _rows_of(rank(), n) if world_size() > 1 else slice(0, n)


def _rows_of(rank: int, n: int) -> slice:
    return slice(n * rank // world_size(), n * (rank + 1) // world_size())


def gather_rows(own: torch.Tensor, n: int) -> torch.Tensor:
    """The whole batch (N, ...) from the `own_rows` (B, ...) of every process, with gradient."""
    if world_size() == 1:
        return own
    most = -(-n // world_size())  # gathered parts are of one size
    padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
    counts = [len(range(n)[_rows_of(rank, n)]) for rank in range(world_size())]
    parts = zip(all_gather_with_gradient(padded), counts, strict=True)
    return torch.cat([part[:count] for part, count in parts])
