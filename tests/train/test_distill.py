"""The student: its steps against diffusers' DDIM, its teacher against a plain loop, the stage inside a whole study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import nn

from mindvideo.baselines.summary import _study_cost
from mindvideo.config import Recipe, Reconstruct, load_recipe, with_settings
from mindvideo.errors import SettingError
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.needs import check_recipe
from mindvideo.preflight import refusals
from mindvideo.report.read import read_run
from mindvideo.stages import StageContext
from mindvideo.study import Study
from mindvideo.train import distill
from mindvideo.train.animate import Diffusion
from mindvideo.train.distill import Ddim, Teacher

SHAPE = (4, 3, 5, 6)  # c, F, h, w
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
          "set_alpha_to_one": False, "timestep_spacing": "trailing"}  # fmt: skip
PREDICTIONS = ("v_prediction", "epsilon", "sample")


class Toy(nn.Module):
    """A generator whose prediction depends on clip, time and condition."""

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> SimpleNamespace:
        level = (time.float() / 1000).view(-1, 1, 1, 1, 1)
        return SimpleNamespace(sample=0.3 * torch.tanh(noisy) * level + condition.mean((1, 2)).view(-1, 1, 1, 1, 1))


def make_ddim(prediction: str, **other: object) -> tuple[Ddim, DDIMScheduler]:
    reference = DDIMScheduler(prediction_type=prediction, **CONFIG | other)
    return Ddim(Diffusion(dict(reference.config))), reference


@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [4, 7])
def test_steps_are_those_of_diffusers(prediction: str, steps: int, is_one: bool) -> None:
    ddim, reference = make_ddim(prediction, set_alpha_to_one=is_one)
    reference.set_timesteps(steps)
    start, after = ddim.grid(steps)
    assert start.tolist() == reference.timesteps.tolist()
    generator = torch.Generator().manual_seed(steps)
    noisy, predicted = (torch.randn(steps, *SHAPE, generator=generator) for _ in range(2))
    found = ddim.step(noisy, ddim.clean(noisy, predicted, start), start, after)
    for row, time in enumerate(reference.timesteps):
        expected = reference.step(predicted[row], time, noisy[row]).prev_sample
        torch.testing.assert_close(found[row], expected, rtol=2e-4, atol=2e-4)


def test_aim_undoes_a_step() -> None:
    ddim, _ = make_ddim("epsilon")
    time, after = torch.tensor([999, 749, 249]), torch.tensor([749, 40, -1])
    noisy, clean = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    arrived = ddim.step(noisy, clean, time, after)
    torch.testing.assert_close(ddim.aim(noisy, arrived, time, after), clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_teacher_walks_as_a_plain_loop(prediction: str, scale: float) -> None:
    """Ten guided steps of diffusers' DDIM, two by two, clip by clip."""
    ddim, reference = make_ddim(prediction)
    reference.set_timesteps(10)
    generator, toy = torch.Generator().manual_seed(2), Toy()
    noisy = torch.randn(5, *SHAPE, generator=generator)
    condition, negative = torch.randn(2, 5, 7, 8, generator=generator)
    teacher = Teacher(toy, ddim, Reconstruct(guidance_scale=scale), steps=2)  # type: ignore[arg-type]
    time, after = ddim.grid(5)
    aim = teacher.walk(noisy, time, after, condition, negative)
    found = ddim.step(noisy, aim, time, after)
    for row in range(5):
        at = noisy[row : row + 1]
        for moment in reference.timesteps[2 * row : 2 * row + 2]:
            wanted = toy(at, moment[None], condition[row : row + 1]).sample
            unwanted = toy(at, moment[None], negative[row : row + 1]).sample
            predicted = unwanted + scale * (wanted - unwanted)
            at = reference.step(predicted, moment, at).prev_sample
        torch.testing.assert_close(found[row : row + 1], at, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def student_recipe(random_kit: Path) -> Recipe:
    small = (
        "{sampler_steps: 3, teacher_steps: 2, steps: 20, batch_size: 3, lr: 3.0e-3, checkpoint_every: 5, log_every: 1}"
    )
    return load_recipe(str(Path(__file__).parents[1] / "tiny.yaml"), [f"foundation={random_kit}", f"distill={small}"])


@pytest.fixture(scope="module")
def student_run(student_recipe: Recipe, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with a student, on top of the one without."""
    run_dir = tmp_path_factory.mktemp("student") / "tiny"
    shutil.copytree(tiny_run, run_dir)
    ran = Study(student_recipe, run_dir).run(say=lambda line: None)
    assert ran == ["distill", "reconstruct", "evaluate", "report"]
    return run_dir


def test_student_comes_nearer_to_the_teacher(student_run: Path) -> None:
    rows = [json.loads(line) for line in (student_run / "distill" / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in seen] == [4, 9, 14, 19]
    assert seen[-1]["validation_loss"] < seen[0]["validation_loss"]
    assert len({row["validation_loss_teacher"] for row in seen}) == 1
    cotrained, student = (load_file(student_run / stage / "unet" / "diffusion_pytorch_model.safetensors")
                          for stage in ("cotrain", "distill"))  # fmt: skip
    assert cotrained.keys() == student.keys()
    assert not torch.equal(cotrained["conv_in.weight"], student["conv_in.weight"])


def test_saved_pipeline_samples_as_the_student_was_trained(student_run: Path) -> None:
    pipeline = MindVideoPipeline.from_pretrained(student_run / "model")
    assert (pipeline.config.num_inference_steps, pipeline.config.guidance_scale) == (3, 1.0)
    pipeline.scheduler.set_timesteps(3)
    assert pipeline.scheduler.timesteps.tolist() == [999, 666, 332]
    student = load_file(student_run / "distill" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pipeline.unet.state_dict()["conv_in.weight"], student["conv_in.weight"])
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    assert pipeline.train_mean is not None
    window = np.zeros((2, *pipeline.train_mean.shape), np.float32) + 0.1
    clips = pipeline(window, num_frames=6, generator=torch.Generator().manual_seed(0)).frames
    assert calls == [2, 2, 2] and clips.shape[:2] == (2, 6)  # one pass a step


def test_scores_have_the_same_controls(student_run: Path, tiny_run: Path) -> None:
    with_student, without = (
        json.loads((run / "evaluate" / "scores.json").read_text()) for run in (student_run, tiny_run)
    )
    assert with_student.keys() == without.keys()
    for name, entry in with_student.items():
        assert entry["controls"].keys() == without[name]["controls"].keys() != set()


def test_report_says_that_a_student_sampled(student_run: Path, tiny_run: Path) -> None:
    pages = [(run / "report" / "index.html").read_text() for run in (student_run, tiny_run)]
    assert ["A student of the guided generator samples the clips in 3 passes" in page for page in pages] == [
        True,
        False,
    ]


def test_memory_is_counted(student_recipe: Recipe, tmp_path: Path) -> None:
    needs = {need.stage: need for need in check_recipe(student_recipe, tmp_path).needs}
    assert list(needs)[-5:] == ["distill", "reconstruct", "evaluate", "explain", "report"]
    assert needs["distill"].memory_bytes > 0 and "3 steps" in needs["reconstruct"].what
    assert needs["distill"].disk_bytes > needs["animate"].disk_bytes  # all of the generator trains


def test_killed_student_goes_on_to_the_same_bits(
    student_recipe: Recipe, student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "tiny"
    shutil.copytree(student_run, run_dir, ignore=shutil.ignore_patterns("distill", "model", "reconstruct"))

    class KilledError(Exception):
        pass

    def stop(stage: str, done: int) -> None:
        if done == 12:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("mindvideo.train.loop._kill_for_test", stop)
        with pytest.raises(KilledError):
            distill.run(StageContext.of(student_recipe, run_dir, "distill"))
    assert not (run_dir / "distill" / "unet").exists()
    distill.run(StageContext.of(student_recipe, run_dir, "distill"))
    name = Path("distill") / "unet" / "diffusion_pytorch_model.safetensors"
    assert (run_dir / name).read_bytes() == (student_run / name).read_bytes()


def test_what_cannot_be(cli: Callable[..., tuple[int, str]], tiny_run: Path, student_recipe: Recipe) -> None:
    code, said = cli("distill", tiny_run)
    assert code == 1 and "expected a 'distill' section" in said and "--set distill.sampler_steps=4" in said
    with pytest.raises(SettingError, match=r"distill\.sampler_steps=4"):
        distill.run(StageContext.of(student_recipe.model_copy(update={"distill": None}), tiny_run, "distill"))
    transductive = student_recipe.reconstruct.model_copy(update={"negative": "test_mean"})
    with pytest.raises(SettingError, match="test_mean"):
        distill.run(
            StageContext.of(student_recipe.model_copy(update={"reconstruct": transductive}), tiny_run, "distill")
        )
    errors = list(refusals(student_recipe.model_copy(update={"reconstruct": transductive})))  # before anything runs
    assert len(errors) == 1 and "test_mean" in str(errors[0])
    with pytest.raises(SettingError, match=r"distill\.sampler_steps.*less than or equal to 50"):
        with_settings(student_recipe, ["distill.sampler_steps=61"])


def test_every_allowed_grid_is_that_of_diffusers() -> None:
    ddim, reference = make_ddim("v_prediction")
    for steps in range(1, 51):
        reference.set_timesteps(steps)
        start, after = ddim.grid(steps)
        assert start.tolist() == reference.timesteps.tolist() and len(start) == steps and bool((start > after).all())


def test_options_that_a_student_cannot_follow(
    cli: Callable[..., tuple[int, str]], student_run: Path, tmp_path: Path
) -> None:
    code, said = cli("reconstruct", student_run, "--steps", 9)
    assert code == 1 and "--steps" in said and "distill=null" in said
    for option in ("--steps", "--guidance-scale"):
        code, said = cli("reconstruct", student_run, "test1", "--out", tmp_path / "film.mp4", option, 2)
        assert code == 1 and option in said
    assert Study.open(student_run).is_done("reconstruct")
    shutil.copytree(student_run, tmp_path / "tiny")
    code, said = cli("reconstruct", tmp_path / "tiny", "--steps", 3, "--set", "distill=null")  # as the message says
    assert code == 0, said
    made = json.loads((tmp_path / "tiny" / "reconstruct" / "done.json").read_text())
    assert made["settings"]["reconstruct"]["steps"] == 3 and "distill" not in made["inputs"]


def test_a_student_that_is_taken_out_leaves_no_trace(tiny_recipe: Recipe, student_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny"
    shutil.copytree(student_run, run_dir)
    page = run_dir / "report" / "index.html"
    sentence = "A student of the guided generator samples"
    study = Study(tiny_recipe, run_dir)
    assert study.run(until="reconstruct", say=lambda line: None) == ["reconstruct"]
    assert study.run(say=lambda line: None) == ["evaluate", "report"]
    assert sentence not in page.read_text() and "distill" not in read_run(run_dir).metrics
    settings = json.loads((student_run / "reconstruct" / "done.json").read_text())["settings"]["reconstruct"]
    assert (settings["steps"], settings["guidance_scale"], settings["scheduler"]) == (3, 1.0, "ddim")


def test_cost_counts_the_students_training(student_run: Path, tiny_run: Path) -> None:
    for run_dir in (student_run, tiny_run):
        stages = ["pretrain", "adapt", "align", "animate", "cotrain", "reconstruct"]
        stages += ["distill"] if run_dir == student_run else []
        seconds = [json.loads((run_dir / stage / "done.json").read_text())["seconds"] for stage in stages]
        assert _study_cost(run_dir)["seconds"] == pytest.approx(sum(seconds))


def test_without_a_student_nothing_is_run_again(tiny_recipe: Recipe, tiny_run: Path) -> None:
    study = Study(tiny_recipe, tiny_run)
    assert "distill" not in [stage.name for stage in study.stages]
    assert study.run(say=lambda line: None) == []
