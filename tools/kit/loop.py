"""The workshop's training loop: plain, restartable, its state in a folder given by argument.

Everything random in a step follows from (seed, step); a run that was killed goes on to the same weights.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn


class Task(Protocol):
    """What is trained, and the loss of one batch."""

    def modules(self) -> nn.ModuleDict:
        """Everything that learns."""
        ...

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """A scalar and what to log."""
        ...


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 rather than imitating it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run(
    task: Task,
    folder: Path,
    steps: int,
    lr: float,
    seed: int = 0,
    warm_up: int = 100,
    average: float = 0.999,
    weight_decay: float = 0.02,
    bf16: bool | None = None,
    report_every: int = 50,
    save_every: int = 250,
) -> None:
    """AdamW with a linear warm-up and half a cosine; the modules end with the averaged weights.

    Parameters
    ----------
    task : Task
    folder : Path
        Receives ``last.pt`` and ``log.jsonl``; a finished run there is only loaded.
    steps : int
    lr : float
    seed : int
    warm_up : int
        Steps.
    average : float
        Of each step's weights, kept in the averaged ones.
    weight_decay : float
        On weights of more than one dimension.
    bf16 : bool, optional
        By default where the processor computes in it.
    report_every, save_every : int
        Steps.

    Raises
    ------
    FloatingPointError
        For a loss that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modules = task.modules()
    parameters = [p for p in modules.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    averaged = {name: value.detach().clone() for name, value in modules.state_dict().items()}
    path, step, recent, begun = folder / "last.pt", 0, [], time.time()
    if path.is_file():
        state = torch.load(path)
        modules.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimiser"])
        averaged, step = state["averaged"], state["step"]
    is_bf16 = has_bf16() if bf16 is None else bf16
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        torch.manual_seed(seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            loss, figures = task.loss(np.random.default_rng([seed, 11, step]))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        keep = min(average, (1 + step) / (10 + step))
        for name, value in modules.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value, 1 - keep)
            else:
                averaged[name].copy_(value)
        step += 1
        recent.append({"loss": float(loss.detach()), **figures})
        if step % report_every == 0:
            row: dict[str, Any] = {"step": step, **{k: float(np.mean([r[k] for r in recent])) for k in recent[0]}}
            row["s_per_step"] = (time.time() - begun) / len(recent)
            print(time.strftime("%H:%M:%S"), json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            recent, begun = [], time.time()
        if step % save_every == 0 or step == steps:
            torch.save({"modules": modules.state_dict(), "optimiser": optimiser.state_dict(), "averaged": averaged,
                        "step": step}, path.with_suffix(".tmp"))  # fmt: skip
            os.replace(path.with_suffix(".tmp"), path)
    modules.load_state_dict(averaged)
