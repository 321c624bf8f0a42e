"""A part's later rounds: from the weights that the last one saved, restartable, noted one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)
from typer.testing import CliRunner

from mindvideo.cli import app
from mindvideo.config import Optimise
from mindvideo.errors import ModelError, SettingError
from mindvideo.foundation import kit, train
from mindvideo.foundation.card import write_cards
from mindvideo.foundation.generator_tasks import MotionTask
from mindvideo.foundation.pool import Pool
from mindvideo.foundation.rounds import read_rounds, round_seed
from mindvideo.models.video_unet import VideoUNet

SEED, CLIPS, BATCH = 3, 6, 5
STILL = {"steps": 1, "lr": 1e-12, "batch_size": BATCH}  # the weights after it are those it began with
PREFIX = {  # of each part's weights among the task's parameters
    "image_classifier": {"image_classifier": "model."},
    "clip_image": {"image_encoder": "image."},
    "video_classifier": {"video_classifier": "model."},
    "captioner": {"captioner": ""},
    "motion": {"motion": "", "unet": ""},
}
CLASSES: dict[str, Any] = {
    "image_classifier": ViTForImageClassification,
    "video_classifier": VideoMAEForVideoClassification,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kit whose parts that begin with another's weights have ended their first round."""
    out = kit.build_kit(tmp_path_factory.mktemp("rounds") / "kit", "test", seed=SEED)
    settings = train._part(2, 4, 1e-3, checkpoint_every=1, log_every=1, precision="fp32")
    quick = {part: settings.model_copy(update={"warmup_steps": 1}) for part in train.PARTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.RECIPES, "quick", {"clips": CLIPS, **quick})
        patch.setattr(kit, "KIT", kit.TEST)
        for part in PREFIX:
            train.train_part(out, part, "quick", SEED)
        yield out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """As the library that wrote them names them in memory, which is not how its files do."""
    if folder.name in CLASSES:
        return CLASSES[folder.name].from_pretrained(folder).float().state_dict()
    return {name: tensor.float() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _draw_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _first_draws(part: str) -> np.random.Generator:
    """What round 2 draws its first batch from; torch's generator too."""
    seed = _draw_seed(_draw_seed(SEED * 1000 + train.PARTS.index(part), 2, 0), 0, 0)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "steps_per_s"} for row in rows]


@pytest.mark.parametrize("part", PREFIX)
def test_a_round_begins_with_the_weights_of_the_one_before(copy: Path, part: str) -> None:
    saved = {folder: _weights(copy / folder) for folder in PREFIX[part]}
    train.train_part(copy, part, number=2, changed=STILL)
    state = load_file(copy / "work" / part / "round2" / "state" / "tensors.safetensors")
    for folder, prefix in PREFIX[part].items():
        for name, tensor in saved[folder].items():
            torch.testing.assert_close(state[f"parameter/{prefix}{name}"], tensor, rtol=0, atol=1e-11)
        after = _weights(copy / folder)
        assert after.keys() == saved[folder].keys()
        assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in saved[folder].items())


def test_first_loss_of_the_captioner_by_hand(copy: Path) -> None:
    pool = Pool.open(copy / "work" / "pool", CLIPS, SEED)
    words = BertTokenizer.from_pretrained(copy / "captioner")
    blip = BlipForConditionalGeneration.from_pretrained(copy / "captioner").float().train()
    rng = _first_draws("captioner")
    index = rng.integers(CLIPS, size=BATCH)
    down, right = 4 * rng.integers(-1, 2, size=2)  # a sixteenth of the picture
    moment = rng.integers(pool.frames.shape[1], size=BATCH)
    frames = np.stack([pool.frames[i, j] for i, j in zip(index, moment, strict=True)])
    side = frames.shape[1]
    framed = np.pad(frames, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")[:, 4 - down :, 4 - right :][:, :side, :side]
    pixels = framed.transpose(0, 3, 1, 2) / 127.5 - 1
    rows = [["[DEC]", *words.tokenize(pool.scenes[i].caption()), "[SEP]"] for i in index]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([words.convert_tokens_to_ids(row + ["[PAD]"] * (longest - len(row))) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    loss = blip(
        pixel_values=torch.from_numpy(pixels).float(),
        input_ids=ids,
        attention_mask=mask,
        labels=torch.where(mask == 1, ids, -100),
    ).loss
    train.train_part(copy, "captioner", number=2, changed={"batch_size": BATCH, "steps": 3})
    assert _rows(copy / "work" / "captioner" / "round2")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_first_loss_of_motion_with_weights_loaded_here(copy: Path) -> None:
    pool = Pool.open(copy / "work" / "pool", CLIPS, SEED)
    latents = torch.from_numpy(np.load(copy / "work" / "clip_latents.npy")).unflatten(0, (CLIPS, -1))
    flat = VideoUNet.from_unet2d(UNet2DConditionModel.from_pretrained(copy / "unet").float(), frame_positions=True)
    unet = VideoUNet.from_config(flat.config)
    unet.load_state_dict(flat.state_dict() | _weights(copy / "motion"))
    tokenizer = CLIPTokenizer.from_pretrained(copy / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(copy / "text_encoder").float().eval()

    def encode(captions: list[str]) -> torch.Tensor:
        numbers = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text(numbers).last_hidden_state

    settings = Optimise(batch_size=BATCH, steps=1)
    losses = []
    for model in (unet, flat):
        scheduler = DDIMScheduler.from_pretrained(copy / "scheduler")
        task = MotionTask(model, scheduler, latents, encode, pool, settings)
        rng = _first_draws("motion")
        with torch.no_grad():
            losses.append(task.loss(0, 0, rng)[0].item())
    train.train_part(copy, "motion", number=2, changed={"batch_size": BATCH, "steps": 1})
    found = _rows(copy / "work" / "motion" / "round2")[0]["loss"]
    assert found == pytest.approx(losses[0], rel=1e-5)
    assert found != pytest.approx(losses[1], rel=1e-5)  # what a generator inflated anew would have


def test_a_motion_without_frame_positions_goes_on_without(copy: Path) -> None:
    path = copy / "motion" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frame_positions": False}))
    train.train_part(copy, "motion", number=2, changed={"batch_size": 2, "steps": 1})
    assert json.loads(path.read_text())["frame_positions"] is False


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("killed_at", [1, 3, "saved"])
def test_a_killed_round_goes_on_to_the_same_bits(
    copy: Path, tmp_path: Path, killed_at: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    changed = {"steps": 4, "lr": 5e-3}

    def kill(done: int = 0, total: int = 0, figures: object = None) -> None:
        if total in (0, 4) and done in (0, killed_at):
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        if killed_at == "saved":  # the weights are in the kit, the note of it is not
            patch.setattr(train, "write_rounds", lambda folder, rounds: kill())
        train.train_part(copy, "video_classifier", progress=kill, number=2, changed=changed)
    assert len(read_rounds(copy / "work" / "video_classifier")) == 1
    torch.rand(7)  # another process has another generator
    for out in (copy, whole):
        train.train_part(out, "video_classifier", number=2, changed=changed)
    found, wanted = (load_file(out / "video_classifier" / "model.safetensors") for out in (copy, whole))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    rows = [_rows(out / "work" / "video_classifier" / "round2") for out in (copy, whole)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [0, 1, 2, 3]


def test_every_round_draws_its_own_numbers(copy: Path) -> None:
    seeds = [round_seed(seed, place, number) for seed in range(4) for place in range(11) for number in range(1, 5)]
    assert len(set(seeds)) == len(seeds)
    for number in (2, 3):
        train.train_part(copy, "captioner", number=number, changed=STILL)
    second, third = (_rows(copy / "work" / "captioner" / f"round{number}")[0]["loss"] for number in (2, 3))
    assert abs(second - third) > 1e-3  # the same weights, other pictures


def test_rounds_are_noted_and_stay(copy: Path) -> None:
    work, weights = copy / "work" / "captioner", copy / "captioner" / "model.safetensors"
    first = read_rounds(work)[0]
    old = {"part": "captioner", **first, "note": "By hand."}  # as written before there were rounds
    (work / "made.json").write_text(json.dumps(old))
    write_cards(copy, [])
    card = (copy / "captioner" / "card.md").read_text()
    assert "--part captioner --recipe quick --seed 3`." in card and "**Note:** By hand." in card and "round" not in card
    result = CliRunner().invoke(
        app,
        ["foundation", "train", str(copy), "--part", "captioner", "--round", "2"]
        + ["--steps", "3", "--batch-size", "5", "--lr", "7e-4"],
    )
    assert result.exit_code == 0, result.output
    made = json.loads((work / "made.json").read_text())
    assert made["rounds"][0] == {key: value for key, value in old.items() if key != "part"}
    settings = made["rounds"][1].pop("settings")
    assert (settings["steps"], settings["batch_size"], settings["lr"], settings["warmup_steps"]) == (3, 5, 7e-4, 1)
    assert made["rounds"][1] == {
        "recipe": "quick",
        "seed": 3,
        "clips": CLIPS,
        "changed": {"steps": 3, "batch_size": 5, "lr": 7e-4},
    }
    write_cards(copy, [])
    card = (copy / "captioner" / "card.md").read_text()
    assert "--seed 3 --round 2 --steps 3 --batch-size 5 --lr 0.0007`" in card and "**Note:** By hand." in card
    kept = weights.read_bytes(), (work / "made.json").read_bytes()
    train.train_part(copy, "captioner", "quick", SEED)  # the whole kit once more: what went on stays
    train.train_part(copy, "captioner", number=2, changed=made["rounds"][1]["changed"])
    assert kept == (weights.read_bytes(), (work / "made.json").read_bytes())


def test_what_cannot_go_on_is_refused(copy: Path) -> None:
    with pytest.raises(ModelError, match=r"1 finished round of 'unet' before round 2, found none: .*train round 1"):
        train.train_part(copy, "unet", number=2)
    with pytest.raises(ModelError, match=r"3 finished rounds of 'captioner' before round 4, found 1.*train round 2"):
        train.train_part(copy, "captioner", number=4)
    with pytest.raises(ModelError, match=r"expected recipe quick and seed 3, .*found recipe quick and seed 8"):
        train.train_part(copy, "captioner", seed=8, number=2)
    with pytest.raises(SettingError, match=r"'steps' in round 2 of captioner: .*greater than or equal to 1, found 0"):
        train.train_part(copy, "captioner", number=2, changed={"steps": 0})
    with pytest.raises(SettingError, match="a round from 1 on, found 0"):
        train.train_part(copy, "captioner", number=0)
    assert not (copy / "work" / "captioner" / "round2").exists() and not (copy / "work" / "unet").exists()

    def kill(done: int, total: int, figures: object) -> None:
        if done == total:
            raise KilledError

    with pytest.raises(KilledError):
        train.train_part(copy, "captioner", progress=kill, number=2, changed={"steps": 3})
    with pytest.raises(ModelError, match=r"captioner/round2 to be made with lr 0.5, found lr 0.001"):
        train.train_part(copy, "captioner", number=2, changed={"steps": 3, "lr": 0.5})
    train.train_part(copy, "captioner", number=2, changed={"steps": 3})
    with pytest.raises(
        ModelError, match=r"round 2 of .*with lr 0.5, found that it ended with lr 0.001; go on with round 3"
    ):
        train.train_part(copy, "captioner", number=2, changed={"steps": 3, "lr": 0.5})


def test_options_of_a_round_are_for_one_part(tmp_path: Path) -> None:
    for more in (["--round", "2"], ["--lr", "1e-3", "--part", "vae", "--part", "clip"]):
        result = CliRunner().invoke(app, ["foundation", "train", str(tmp_path / "kit"), *more])
        assert isinstance(result.exception, SettingError) and "expected one --part with --round" in str(
            result.exception
        )
    assert not (tmp_path / "kit").exists()
