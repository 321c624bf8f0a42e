"""The training loop: one for every stage, and for the foundation kit.

Everything random in step *s* follows from (seed, *s*) alone: the batch, the noise, dropout. A checkpoint therefore
needs parameters, optimiser moments and the step, and a killed run goes on to the same bits. Several processes (``accelerate
launch``) each compute their rows of the same batch and add their losses and gradients up; see `processes`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from mindvideo import processes
from mindvideo.config import Optimise
from mindvideo.errors import SettingError, TrainingError
from mindvideo.precision import settle_precision
from mindvideo.stages import UNFINISHED
from mindvideo.train.checkpoint import load_checkpoint, save_checkpoint
from mindvideo.train.sharding import gather, is_split, part_like, whole

Figures = Mapping[str, float | torch.Tensor]


class Task(Protocol):
    """What a stage brings to the loop.

    A task may keep ``sample_values``: the numbers of its last micro-batch's samples (this process's) and a value of each, (B,),
    that is finite unless something is wrong with that sample. The loop names the culprits by it.
    """

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        ...

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        """Loss of one micro-batch (scalar tensor) and figures to log; all randomness from ``rng`` or torch's.

        Among several processes: this one's part of them, which adds up to the whole over the processes.
        """
        ...


def step_seed(seed: int, step: int, micro: int = 0) -> int:
    """A 63-bit seed that depends on the study's seed, the step and the micro-batch, and on nothing else."""
    state = np.random.SeedSequence([seed, step, micro]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def learning_rate_factor(settings: Optimise, step: int) -> float:
    """Linear warm-up, then half a cosine to zero, or constant (METHOD section 4)."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    span = max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * (step - settings.warmup_steps) / span))


def parameter_groups(
    parameters: dict[str, nn.Parameter], settings: Optimise, lr_of: Callable[[str], float] | None = None
) -> list[dict[str, object]]:
    """AdamW groups: weight decay only on parameters with more than one dimension; a learning rate by name."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        lr = lr_of(name) if lr_of else settings.lr
        groups.setdefault((decay, lr), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "lr": lr, "base_lr": lr} for (decay, lr), group in groups.items()]


def _flat_state(
    parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, average: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds, under flat names; whole, and in the first process only."""
    tensors = {f"parameter/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value)
    for name, tensor in (average or {}).items():
        tensors[f"average/{name}"] = tensor
    return gather(tensors)


def _restore(
    tensors: dict[str, torch.Tensor],
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None,
) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(part_like(tensors[f"parameter/{name}"], parameter))
            moments = {
                key: part_like(tensors[f"optimiser/{key}/{name}"], parameter)
                for key in ("exp_avg", "exp_avg_sq")
                if f"optimiser/{key}/{name}" in tensors
            }
            if moments:
                taken = tensors[f"optimiser/step/{name}"].to(parameter.device)
                optimiser.state[parameter] = {"step": taken, **moments}
            if average is not None:
                average[name].copy_(part_like(tensors[f"average/{name}"], parameter))


def _append(path: Path, row: dict[str, float]) -> None:
    with path.open("a") as handle:
        handle.write(json.dumps(row) + "\n")


def _keep_rows_before(path: Path, step: int) -> None:
    """Drop log rows the killed run wrote after its last checkpoint; they are about to be written again."""
    if path.is_file():
        rows = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] < step:
                    rows.append(line)
            except (json.JSONDecodeError, KeyError):
                continue
        path.write_text("".join(row + "\n" for row in rows))


def train(
    task: Task,
    settings: Optimise,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    lr_of: Callable[[str], float] | None = None,
    validate: Callable[[int], dict[str, float]] | None = None,
    validate_every: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Train ``task`` for ``settings.steps`` steps, going on from ``folder/state`` if it is there.

    Parameters
    ----------
    task : Task
        Gives parameters and the loss of a micro-batch.
    settings : Optimise
        Steps, learning rate, weight decay, averaging, precision, how often to checkpoint and log.
    folder : Path
        Receives ``metrics.jsonl`` (one row per ``log_every`` steps) and ``state/``.
    seed : int
        With the step number it determines all randomness.
    progress : callable, optional
        Called with (steps done, steps, figures).
    lr_of : callable, optional
        Learning rate of a parameter by its name; the settings' own otherwise.
    validate : callable, optional
        Called with the step every ``validate_every`` steps and at the end; its figures are logged. It sees the averaged
        weights where averaging is on.

    Returns
    -------
    dict of str to Tensor
        The final weights by parameter name: averaged where ``settings.ema_decay`` is set. They are also in the task's
        parameters when this returns. Of weights split over the processes, this process's part.

    Raises
    ------
    TrainingError
        When a loss or gradient is not finite; weights are unchanged by that step.
    SettingError
        For a batch of fewer rows than there are processes.
    """
    stage = folder.name.removesuffix(UNFINISHED)
    if settings.batch_size < processes.count():
        raise SettingError(
            f"expected a batch_size of at least {processes.count()}, one row a process, found {settings.batch_size} in "
            f"{stage}; raise it, or start fewer processes"
        )
    is_first, device = processes.is_first(), torch.device(device)
    is_bf16 = settle_precision(folder, settings.precision, device) == "bf16"
    parameters = task.parameters()
    groups = parameter_groups(parameters, settings, lr_of)
    # One fused kernel for all parameters: the optimiser is what weighs most in a small batch's step.
    optimiser = torch.optim.AdamW(groups, betas=settings.betas, fused=True)
    average = None
    if settings.ema_decay is not None:
        average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    start = 0
    saved = load_checkpoint(folder / "state")
    if saved is not None:
        tensors, numbers = saved
        _restore(tensors, parameters, optimiser, average)
        start = int(numbers["step"])
    log = folder / "metrics.jsonl"
    processes.wait()  # before the first one changes what the others read
    if is_first:
        folder.mkdir(parents=True, exist_ok=True)
        _keep_rows_before(log, start)
    seconds_start = time.perf_counter()
    for step in range(start, settings.steps):
        factor = learning_rate_factor(settings, step)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimiser.zero_grad(set_to_none=True)
        figures = _gather_gradients(task, settings, seed, step, parameters, stage, device.type, is_bf16)
        optimiser.step()
        done = step + 1
        if average is not None:
            _update_average(average, parameters, settings.ema_decay or 0.0, step)
        is_last = done == settings.steps
        row = None
        if validate is not None and (is_last or (validate_every and done % validate_every == 0)):
            figures |= _validate_with(validate, done, parameters, average)
            row = {"step": step, **figures}
        elif step % settings.log_every == 0 or is_last:
            rate = (done - start) / (time.perf_counter() - seconds_start)
            row = {"step": step, **figures, "lr": settings.lr * factor, "steps_per_s": rate}
        if row is not None and is_first:
            _append(log, row)
        if progress is not None and is_first:
            progress(done, settings.steps, figures)
        if done % settings.checkpoint_every == 0 or is_last:
            state = _flat_state(parameters, optimiser, average)
            if is_first:
                save_checkpoint(folder / "state", state, {"step": done})
        _kill_for_test(stage, done)
    if average is not None:
        _exchange(parameters, average)
    processes.wait()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _gather_gradients(
    task: Task,
    settings: Optimise,
    seed: int,
    step: int,
    parameters: dict[str, nn.Parameter],
    stage: str,
    device_type: str,
    is_bf16: bool,
) -> dict[str, float]:
    """Gradients of one step in the parameters, and its figures; the step's one wait for the device is at the end.

    Raises
    ------
    TrainingError
        In every process, when a loss or a gradient is not finite in any.
    """
    values, seen, names = [], [], ["loss"]
    for micro in range(settings.accumulate):
        micro_seed = step_seed(seed, step, micro)
        torch.manual_seed(micro_seed)
        with processes.global_batch(settings.batch_size):
            with torch.autocast(device_type, torch.bfloat16, enabled=is_bf16):
                loss, logged = task.loss(step, micro, np.random.default_rng(micro_seed))
            (loss / settings.accumulate).backward()
        names = ["loss", *logged]
        figures = [torch.as_tensor(value, device=loss.device).detach() for value in (loss, *logged.values())]
        values.append(torch.stack([figure.double() for figure in figures]))
        seen.append(getattr(task, "sample_values", None))
    together = processes.add_up(torch.stack(values))
    processes.add_up_gradients(parameter for parameter in parameters.values() if not is_split(parameter))
    most = math.inf if settings.clip_grad is None else settings.clip_grad
    norm = whole(torch.nn.utils.clip_grad_norm_(list(parameters.values()), most))
    *numbers, found_norm = torch.cat([together.flatten(), norm.reshape(1).to(together)]).tolist()
    rows = [numbers[start : start + len(names)] for start in range(0, len(numbers), len(names))]
    for micro, row in enumerate(rows):
        if not math.isfinite(row[0]):
            raise TrainingError(
                f"expected a finite loss, found {row[0]} at step {step} (micro-batch {micro}) of {stage}"
                f"{_name_culprits(seen[micro])}; "
                "the weights are those of the step before; lower the learning rate or look at that batch's data"
            )
    if not math.isfinite(found_norm):
        raise TrainingError(f"expected finite gradients, found norm {found_norm} at step {step} of {stage}")
    return {name: math.fsum(row[at] for row in rows) / settings.accumulate for at, name in enumerate(names)}


def _name_culprits(seen: tuple[np.ndarray, torch.Tensor] | None) -> str:
    """The samples, of every process, whose own value is not finite, in words."""
    own = []
    if seen is not None:
        own = [int(number) for number, value in zip(seen[0], seen[1].tolist(), strict=True) if not math.isfinite(value)]
    found = processes.collect(own)
    return f", sample {', '.join(map(str, found))}" if found else ""


def _update_average(
    average: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], decay: float, step: int
) -> None:
    """Exponential moving average whose horizon grows with the step until it reaches ``decay``."""
    decay = min(decay, (1.0 + step) / (10.0 + step))
    with torch.no_grad():
        torch._foreach_lerp_(
            list(average.values()), [parameter.detach() for parameter in parameters.values()], 1.0 - decay
        )


def _exchange(parameters: dict[str, nn.Parameter], average: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(average[name])
            average[name].copy_(kept)


def _validate_with(
    validate: Callable[[int], dict[str, float]],
    step: int,
    parameters: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor] | None,
) -> dict[str, float]:
    if average is None:
        return validate(step)
    _exchange(parameters, average)
    try:
        return validate(step)
    finally:
        _exchange(parameters, average)


def _kill_for_test(stage: str, done: int) -> None:
    """SIGKILL this process after a step named in ``MINDVIDEO_TEST_KILL=stage:step``; the resume test uses it."""
    if os.environ.get("MINDVIDEO_TEST_KILL") == f"{stage}:{done}":
        os.kill(os.getpid(), 9)


def named_trainable(module: nn.Module, pattern: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """Parameters of ``module`` whose name contains one of ``pattern`` (default: all); the others are frozen."""
    wanted = tuple(pattern) if pattern is not None else None
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        is_wanted = wanted is None or any(part in name for part in wanted)
        parameter.requires_grad_(is_wanted)
        if is_wanted:
            chosen[name] = parameter
    return chosen
