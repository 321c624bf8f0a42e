"""What a rival costs: seconds and the largest resident memory while something runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def measure_cost(every_s: float = 0.1) -> Iterator[dict[str, float]]:
    """Yields a dictionary that holds ``seconds`` and ``peak_memory_bytes`` (this process) once the block has ended."""
    process, cost, stop = psutil.Process(), {"seconds": 0.0, "peak_memory_bytes": 0.0}, threading.Event()

    def sample() -> None:
        while True:
            cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], float(process.memory_info().rss))
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=sample, daemon=True)
    start = time.perf_counter()
    thread.start()
    try:
        yield cost
    finally:
        stop.set()
        thread.join()
        cost["seconds"] = time.perf_counter() - start
