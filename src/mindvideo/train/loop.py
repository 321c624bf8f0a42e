"""The training loop: one for every stage, every rival and the foundation kit.

Everything random in step *s* follows from (seed, *s*) alone. A checkpoint thus needs parameters,
optimiser moments and the step, and a killed run goes on to the same bits. Several processes draw
the same batch and compute the losses of their own rows; torch's DDP or FSDP averages the gradients.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mindvideo import distributed
from mindvideo.config import Optimise
from mindvideo.errors import SettingError, TrainingError
from mindvideo.precision import settle_precision
from mindvideo.stages import UNFINISHED
from mindvideo.train.checkpoint import load_checkpoint, save_checkpoint
from mindvideo.train.sharding import full_tensor, full_tensors, is_sharded, shard_like

Batch = dict[str, Any]
"""The rows of a batch; ``index`` holds their indices among the samples."""
Metrics = Mapping[str, float | torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """What one micro-batch is drawn from.

    Attributes
    ----------
    rng : numpy Generator
        For all that torch's own generator, seeded alike, does not draw.
    size : int
        Rows of the micro-batch, of all processes together.
    step, number : int
        The step, and the index of the micro-batch since the beginning.
    seed : int
        Of the whole training.
    """

    rng: np.random.Generator
    size: int
    step: int
    number: int
    seed: int

    def rows(self, count: int) -> np.ndarray:
        """Indices of ``size`` of ``count`` samples, int64, in epochs, each in a new order; an incomplete batch is dropped.

        SettingError for a batch of more samples than there are.
        """
        if self.size > count:
            raise SettingError(
                f"expected a batch_size of at most {count}, the number of training samples, found {self.size}; lower it"
            )
        epoch, place = divmod(self.number, count // self.size)
        return _epoch_order(self.seed, epoch, count)[place * self.size : (place + 1) * self.size]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class Task(Protocol):
    """What a stage brings to the loop.

    Every parameter takes part in every loss, unless ``may_leave_out``; ``lr_of(name)``, if there is
    one, gives learning rates.
    """

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""

    def sample(self, draw: Draw) -> Batch:
        """One micro-batch with all its randomness, the same in every process."""

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Loss of each row (B,) of this process, and mean metrics to log."""


def step_seed(seed: int, *numbers: int) -> int:
    """A 63-bit seed from the study's seed and some numbers, such as step and micro-batch."""
    state = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def learning_rate_factor(settings: Optimise, step: int) -> float:
    """Linear warm-up, then half a cosine to zero, or constant."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    span = max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * (step - settings.warmup_steps) / span))


def parameter_groups(
    parameters: dict[str, nn.Parameter], settings: Optimise, lr_of: Callable[[str], float] | None = None
) -> list[dict[str, object]]:
    """AdamW's parameter groups: no weight decay on vectors; a learning rate by name."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        lr = lr_of(name) if lr_of else settings.lr
        groups.setdefault((decay, lr), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "lr": lr, "base_lr": lr} for (decay, lr), group in groups.items()]


def train(
    task: Task,
    settings: Optimise,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    validate: Callable[[int], dict[str, float]] | None = None,
) -> dict[str, torch.Tensor]:
    """Train ``task`` for ``settings.steps`` steps, going on from ``folder/state`` if it is there.

    Parameters
    ----------
    task : Task
    settings : Optimise
    folder : Path
        Receives ``metrics.jsonl`` (a row every ``log_every`` steps), ``precision.txt`` and
        ``state/``.
    seed : int
        With the step it determines all randomness.
    progress : callable, optional
        Called with (steps done, steps, metrics).
    validate : callable, optional
        Called every ``settings.validation_interval`` steps and at the end, with averaged weights if
        averaging is on; its metrics are logged.

    Returns
    -------
    dict of str to Tensor
        The final weights by parameter name, averaged if ``settings.ema_decay`` is set, as also in
        the task's parameters. Of sharded weights, this process's shards.

    Raises
    ------
    TrainingError
        When a loss or gradient is not finite; weights are unchanged by that step.
    SettingError
        For a batch of fewer rows than there are processes.
    """
    stage = folder.name.removesuffix(UNFINISHED)
    if settings.batch_size < distributed.world_size():
        raise SettingError(
            f"expected a batch_size of at least {distributed.world_size()}, one row a process, found {settings.batch_size} in "
            f"{stage}; raise it, or start fewer processes"
        )
    is_first, parameters = distributed.is_main(), task.parameters()
    device = next(iter(parameters.values())).device
    is_bf16 = settle_precision(folder, settings.precision, device) == "bf16"
    trained = _Trained(parameters, settings, getattr(task, "lr_of", None))
    start = trained.load(folder / "state")
    log = folder / "metrics.jsonl"
    distributed.barrier()  # before the first one changes what the others read
    if is_first:
        _keep_rows_before(log, start)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)
    losses = _Losses(task, trained.parameters, autocast).shared()
    seconds_start = time.perf_counter()
    for step in range(start, settings.steps):
        factor = learning_rate_factor(settings, step)
        trained.begin_step(factor)
        metrics = _compute_gradients(task, losses, trained.parameters, settings, seed, step, stage)
        trained.end_step(step)
        done = step + 1
        is_last = done == settings.steps
        row = None
        if validate is not None and (is_last or done % settings.validation_interval == 0):
            with trained.averaged():
                metrics |= validate(done)
            row = {"step": step, **metrics}
        elif step % settings.log_every == 0 or is_last:
            rate = (done - start) / (time.perf_counter() - seconds_start)
            row = {"step": step, **metrics, "lr": settings.lr * factor, "steps_per_s": rate}
        if row is not None and is_first:
            with log.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        if progress is not None and is_first:
            progress(done, settings.steps, metrics | {"lr": settings.lr * factor})
        if done % settings.checkpoint_every == 0 or is_last:
            trained.save(folder / "state", done)
        _kill_for_test(stage, done)
    trained.swap()
    distributed.barrier()
    return {name: parameter.detach().clone() for name, parameter in trained.parameters.items()}


class _Trained:
    def __init__(
        self, parameters: dict[str, nn.Parameter], settings: Optimise, lr_of: Callable[[str], float] | None
    ) -> None:
        self.parameters, self.decay = parameters, settings.ema_decay
        # One fused kernel for all parameters: in a small batch's step the optimiser takes longest.
        groups = parameter_groups(parameters, settings, lr_of)
        self.optimiser = torch.optim.AdamW(groups, betas=settings.betas, fused=True)
        self.average: dict[str, torch.Tensor] = {}
        if self.decay is not None:
            self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def begin_step(self, factor: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimiser.zero_grad(set_to_none=True)

    def end_step(self, step: int) -> None:
        """Update the weights and their average, whose decay grows up to its final value."""
        self.optimiser.step()
        if self.decay is not None:
            decay = min(self.decay, (1.0 + step) / (10.0 + step))
            current = [parameter.detach() for parameter in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the parameters and their average."""
        for name, average in self.average.items():
            kept = self.parameters[name].detach().clone()
            self.parameters[name].copy_(average)
            average.copy_(kept)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are their average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save(self, folder: Path, done: int) -> None:
        """Write a checkpoint of full tensors under flat names, by the main process."""
        tensors = {f"parameter/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value)
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        state = full_tensors(tensors)
        if distributed.is_main():
            save_checkpoint(folder, state, {"step": done})

    @torch.no_grad()
    def load(self, folder: Path) -> int:
        """Go on from a checkpoint; returns the steps done, 0 without one."""
        saved = load_checkpoint(folder)
        if saved is None:
            return 0
        tensors, numbers = saved
        for name, parameter in self.parameters.items():
            parameter.copy_(shard_like(tensors[f"parameter/{name}"], parameter))
            if f"optimiser/step/{name}" in tensors:
                state = self.optimiser.state[parameter]
                state["step"] = tensors[f"optimiser/step/{name}"].to(parameter.device)
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = shard_like(tensors[f"optimiser/{key}/{name}"], parameter)
            if self.average:
                self.average[name].copy_(shard_like(tensors[f"average/{name}"], parameter))
        return int(numbers["step"])


class _Losses(nn.Module):
    """A task's losses as a module that owns its parameters, which is what DDP wraps."""

    def __init__(self, task: Task, parameters: dict[str, nn.Parameter], autocast: torch.autocast) -> None:
        super().__init__()
        self.task, self.trained, self.autocast = task, nn.ParameterList(parameters.values()), autocast

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        with self.autocast:
            return self.task.losses(batch)

    def shared(self) -> nn.Module:
        """Wrapped in DDP where there are several processes and FSDP has not sharded the weights."""
        if distributed.world_size() == 1 or any(is_sharded(parameter) for parameter in self.trained):
            return self
        leaves_out = bool(getattr(self.task, "may_leave_out", False))
        return DistributedDataParallel(self, find_unused_parameters=leaves_out)


def _compute_gradients(
    task: Task,
    losses: nn.Module,
    parameters: dict[str, nn.Parameter],
    settings: Optimise,
    seed: int,
    step: int,
    stage: str,
) -> dict[str, float]:
    """Compute one step's gradients, and return its metrics, waiting for the device only once.

    TrainingError in every process, when a loss or a gradient is not finite in any.
    """
    values, seen, names = [], [], ["loss"]
    own = distributed.own_rows(settings.batch_size)
    for micro in range(settings.accumulate):
        micro_seed = step_seed(seed, step, micro)
        torch.manual_seed(micro_seed)
        rng = np.random.default_rng(micro_seed)
        batch = task.sample(Draw(rng, settings.batch_size, step, step * settings.accumulate + micro, seed))
        share = 1.0
        if distributed.world_size() > 1:
            batch = {name: rows[own] for name, rows in batch.items()}
            torch.manual_seed(step_seed(seed, step, micro, distributed.rank()))
            share = (own.stop - own.start) / settings.batch_size
        is_last = micro == settings.accumulate - 1
        without_exchange = nullcontext if is_last else getattr(losses, "no_sync", nullcontext)
        with without_exchange():
            each, logged = losses(batch)
            # DDP averages over the processes; weighted by their shares, the sum is the whole batch's mean.
            (each.mean() * (share * distributed.world_size() / settings.accumulate)).backward()
        names = ["loss", *logged]
        metrics = [torch.as_tensor(value, device=each.device).detach() for value in (each.mean(), *logged.values())]
        values.append(torch.stack([metric.double() for metric in metrics]) * share)
        seen.append((batch, each.detach()))
    together = distributed.all_reduce(torch.stack(values))
    most = math.inf if settings.clip_grad is None else settings.clip_grad
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(list(parameters.values()), most))
    *numbers, found_norm = torch.cat([together.flatten(), norm.reshape(1).to(together)]).tolist()
    rows = [numbers[start : start + len(names)] for start in range(0, len(numbers), len(names))]
    for micro, row in enumerate(rows):
        if not math.isfinite(row[0]):
            raise TrainingError(
                f"expected a finite loss, found {row[0]} at step {step} (micro-batch {micro}) of {stage}"
                f"{_name_culprits(*seen[micro])}; "
                "the weights are those of the step before; lower the learning rate or look at that batch's data"
            )
    if not math.isfinite(found_norm):
        raise TrainingError(f"expected finite gradients, found norm {found_norm} at step {step} of {stage}")
    return {name: math.fsum(row[at] for row in rows) / settings.accumulate for at, name in enumerate(names)}


def _name_culprits(batch: Batch, losses: torch.Tensor) -> str:
    """The samples, of all processes, with values or else losses that are not finite."""
    if "index" not in batch:
        return ""
    index = np.asarray(batch["index"])
    is_broken = np.zeros(len(index), dtype=bool)
    for rows in batch.values():
        if isinstance(rows, torch.Tensor) and rows.is_floating_point():
            is_broken |= ~torch.isfinite(rows.reshape(len(rows), -1)).all(dim=1).cpu().numpy()
    found = distributed.all_gather(index[is_broken].tolist())
    if not found:
        found = distributed.all_gather(index[~torch.isfinite(losses).cpu().numpy()].tolist())
    return f", sample {', '.join(map(str, found))}" if found else ""


def _keep_rows_before(path: Path, step: int) -> None:
    """Drop the log's rows from after the last checkpoint."""
    if path.is_file():
        rows = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] < step:
                    rows.append(line)
            except (json.JSONDecodeError, KeyError):
                continue
        path.write_text("".join(row + "\n" for row in rows))


def _kill_for_test(stage: str, done: int) -> None:
    """SIGKILL this process after a step, ``MINDVIDEO_TEST_KILL=stage:step``, in tests."""
    if os.environ.get("MINDVIDEO_TEST_KILL") == f"{stage}:{done}":
        os.kill(os.getpid(), 9)


def named_trainable(module: nn.Module, parts: Iterable[str] = ("",)) -> dict[str, nn.Parameter]:
    """Parameters whose names contain one of ``parts``, by name; the others are frozen."""
    wanted = tuple(parts)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(part in name for part in wanted))
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
