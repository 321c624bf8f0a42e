"""What a stage or a rival costs: seconds and memory, and on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "nibabel", "zarr", "scikit-image")


@contextmanager
def measure_cost(every_s: float = 0.1) -> Iterator[dict[str, float]]:
    """``peak_memory_bytes`` of this process and its children so far, and at the end ``seconds``."""
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


def describe_machine() -> dict[str, Any]:
    """Commit, operating system, processor, cores, memory, accelerators, Python and packages."""
    torch = sys.modules.get("torch")  # a stage that did not import it used no accelerator
    accelerators = []
    if torch is not None and torch.cuda.is_available():
        accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        "commit": find_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _name_processor(),
        "cores": count_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": ", ".join(accelerators),
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    return {name: value for name, value in found.items() if value}


def count_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def find_commit() -> str:
    """The commit that this package is imported from, if from a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        told = [*git, "describe", "--always", "--dirty=, with changes", "--abbrev=12", "--exclude=*"]
        return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return ""


@cache
def _name_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
