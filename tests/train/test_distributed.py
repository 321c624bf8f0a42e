"""One process and two (gloo, CPU): the same losses for the same global batch, the same bits after a kill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_tasks import MODELS, TASKS, losses, optimise, train_all

from mindvideo import distributed
from mindvideo.errors import SettingError
from mindvideo.train.loop import train
from mindvideo.train.stage import save_memory

PROGRAM = Path(__file__).parent / "shared_tasks.py"


START = """
    import importlib, json, os, sys
    folder, program, *own = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(program))
    import accelerate, torch._dynamo
    module = importlib.import_module(os.path.basename(program).removesuffix(".py"))
    team = []
    for rank, environment in enumerate(map(json.loads, own)):
        team.append(os.fork())
        if team[-1] == 0:
            os.environ.update(environment)
            os.dup2(os.open(os.path.join(folder, f"said_{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            module.main()
            sys.exit()
    print(*[os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in team])
"""
"""Two processes of one program; what they import is imported once, which takes longer than all they do."""


def start_two(folder: Path, program: Path, kill: dict[int, str], **environment: str) -> list[tuple[int, str]]:
    """Exit code and standard error of two processes that run ``program``, as ``accelerate launch`` would start them.

    ``kill`` gives the stage and step after which a rank is killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    for rank, place in kill.items():
        own[rank]["MINDVIDEO_TEST_KILL"] = place
    command = [sys.executable, "-c", textwrap.dedent(START), str(folder), str(program), *map(json.dumps, own)]
    ended = subprocess.run(command, env=common, capture_output=True, text=True, timeout=300, check=True)
    said = [(folder / f"said_{rank}.txt").read_text() for rank in range(2)]
    return list(zip(map(int, ended.stdout.split()), said, strict=True))


def together(folder: Path, program: Path = PROGRAM, **environment: str) -> None:
    """Two processes run ``program`` to its end."""
    ends = start_two(folder, program, {}, **environment)
    assert [code for code, _ in ends] == [0, 0], ends


def kill_one(folder: Path, rank: int, place: str, program: Path = PROGRAM, **environment: str) -> None:
    """Kill one of two; the other finds its connection gone, raises that, and ends with it: no abort, no hanging."""
    ends = start_two(folder, program, {rank: place}, **environment)
    assert ends[rank][0] == -9, ends
    code, said = ends[1 - rank]
    assert code == 1 and "the other process has ended" in said, ends


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    together(folder)
    return folder


def comparable(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters and mean gradients of a task, less the keys' bias: the softmax ignores it, its gradient is noise.

    The gradients are compared since AdamW's steps hardly depend on their scale.
    """
    tensors = load_file(folder / "state" / "tensors.safetensors")
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(("parameter/", "optimiser/exp_avg/"))}
    for name in [name for name in found if name.endswith("qkv.bias")]:
        query, _, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    return found


def test_two_processes_have_the_losses_and_parameters_of_one(two: Path, tmp_path: Path) -> None:
    train_all(tmp_path)
    for name in TASKS:
        alone, shared = losses(tmp_path / name), losses(two / name)
        assert len(alone) == 4 and max(alone) - min(alone) > 1e-3
        assert shared == pytest.approx(alone, abs=1e-5), name
        torch.testing.assert_close(comparable(two / name), comparable(tmp_path / name), rtol=0, atol=1e-5)


def test_a_killed_run_of_two_ends_with_the_same_bits(two: Path, tmp_path: Path) -> None:
    kill_one(tmp_path, 0, "masked:3")
    together(tmp_path)
    for name in TASKS:
        assert losses(tmp_path / name) == losses(two / name)
        first, second = (load_file(run / name / "state" / "tensors.safetensors") for run in (tmp_path, two))
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_a_loss_that_is_not_finite_stops_both_and_names_the_sample(two: Path) -> None:
    told = [json.loads((two / f"error_{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert "sample 7" in told[0]["error"] and f"at step {told[0]['n_steps']} " in told[0]["error"]
    assert told[0]["n_steps"] >= 2
    assert told[0]["is_finite"]


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    with pytest.raises(SettingError, match="--multi_gpu"):
        distributed.init_process_group()


def test_gradient_checkpointing_is_a_setting_that_changes_no_loss(tmp_path: Path) -> None:
    for name, make in TASKS.items():
        plain, saving = make(), make()
        model = getattr(saving, MODELS[name])
        save_memory(optimise(gradient_checkpointing=True), model)
        assert model.is_gradient_checkpointing
        train(plain, optimise(), tmp_path / f"{name}_plain", seed=6)
        train(saving, optimise(), tmp_path / f"{name}_saving", seed=6)
        assert losses(tmp_path / f"{name}_saving") == pytest.approx(losses(tmp_path / f"{name}_plain"), abs=1e-6)
