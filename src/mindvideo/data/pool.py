"""Work on single runs and films: on local threads, or on a dask.distributed cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from mindvideo.cost import count_cores
from mindvideo.errors import DataError, SettingError, one_line

MOST_WORKERS = 4
CONNECT_S = 10
"""Seconds a scheduler has to answer."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def local_workers() -> int:
    """Threads by default: one per core that this process may run on, at most `MOST_WORKERS`."""
    return min(MOST_WORKERS, count_cores())


class Pool:
    """Maps a function over tasks, in order, at most ``ahead`` results waiting."""

    def __init__(self, submit: Callable[..., Any], ahead: int) -> None:
        self._submit, self._ahead = submit, ahead

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int | None = None
    ) -> Iterator[Result]:
        """Yield ``function(task)`` for every task."""
        ahead = self._ahead if ahead is None else min(ahead, self._ahead)
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._submit(function, task))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def open_pool(workers: int = 1, scheduler: str | None = None) -> Iterator[Pool]:
    """A pool for the time of a ``with`` block.

    Parameters
    ----------
    workers : int
        Local threads.
    scheduler : str, optional
        A dask scheduler (``tcp://host:8786``) whose workers see the same paths.

    Raises
    ------
    SettingError
        For both kinds at once, or dask.distributed missing.
    DataError
        If no scheduler answers, or it has no workers.
    """
    if scheduler is not None and workers > 1:
        raise SettingError(
            f"expected either workers or a scheduler, found {workers} workers and {scheduler}; the cluster has its own"
        )
    if scheduler is not None:
        with _cluster(scheduler) as pool:
            yield pool
    else:
        executor = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
        try:
            yield Pool(executor.submit, workers)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _cluster(address: str) -> Iterator[Pool]:
    try:
        from distributed import Client
    except ImportError:
        raise SettingError(
            f"expected dask.distributed to reach the scheduler {address}, found it not installed; "
            "pip install 'mindvideo[cluster]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise DataError(
            f"expected a dask scheduler at {address}, found none that answers ({reason}); start one with 'dask "
            "scheduler' and give its address, or leave --scheduler out"
        ) from error
    try:
        n_threads = sum(client.nthreads().values())
        if n_threads < 1:
            raise DataError(
                f"expected workers at the dask scheduler {address}, found none; start them with 'dask worker {address}'"
            )
        yield Pool(lambda function, task: client.submit(function, task, pure=False), n_threads)
    finally:
        client.close()
