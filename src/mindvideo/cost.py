"""What a stage or a rival costs: seconds, and the largest resident memory while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def measure_cost(every_s: float = 0.1) -> Iterator[dict[str, float]]:
    """Yields a dictionary: ``peak_memory_bytes`` of this process and its children so far; in the end ``seconds``."""
    process, stop = psutil.Process(), threading.Event()
    cost = {"seconds": 0.0, "peak_memory_bytes": 0.0}

    def sample() -> None:
        while True:
            total = 0
            for one in [process, *process.children(recursive=True)]:
                try:
                    total += one.memory_info().rss
                except psutil.Error:  # gone meanwhile
                    continue
            cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], float(total))
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
