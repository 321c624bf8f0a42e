"""Tiny tasks for `test_distributed`; as a program, one of several processes that train them together."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from mindvideo import distributed
from mindvideo.atlas import area_labels, area_of
from mindvideo.config import Align, Distill, Optimise, Reconstruct
from mindvideo.errors import TrainingError
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.masked_areas import MaskedAreaModel
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.train.align import AlignTask
from mindvideo.train.animate import AnimateTask, Diffusion
from mindvideo.train.distill import Ddim, DistillTask, Teacher
from mindvideo.train.features import TextFeatures
from mindvideo.train.loop import train
from mindvideo.train.pretrain import MaskedBrainTask
from mindvideo.train.token_regression import TokenRegression
from mindvideo.train.tokens import TokenTarget
from mindvideo.train.views import AlignData, FixedViews
from mindvideo.voxel_layout import VoxelLayout

CPU = torch.device("cpu")
WORDS = [str(number) for number in range(11)]


def text() -> TextFeatures:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(11, 5, 12, generator=generator).half()
    return TextFeatures(dict(zip(["", *WORDS[1:]], range(11), strict=True)), tokens, tokens.float().mean(1)[:, None])


class FakeWindows:
    """Eleven windows of two scans of 22 voxels; the one numbered ``broken`` holds a NaN from the third batch on."""

    def __init__(self, broken: int | None = None) -> None:
        self.scans = np.random.default_rng(3).standard_normal((11, 2, 22)).astype(np.float32)
        self.broken, self.n_batches = broken, 0
        self.captions = ["", *WORDS[1:]]
        self.person, self.voxels = np.zeros(11, np.int64), [22]

    def __len__(self) -> int:
        return len(self.scans)

    def fmri(self, index: np.ndarray) -> np.ndarray:
        return self.scans[index]

    def mean_fmri(self, person: int) -> np.ndarray:
        return self.scans.mean(0)

    def sample_batch(self, rng: np.random.Generator, size: int) -> np.ndarray:
        self.n_batches += 1
        if self.broken is not None and self.n_batches == 3:
            self.scans[self.broken, 1, 7] = np.nan
        return rng.choice(len(self), size, replace=False)


def make_encoder() -> FmriEncoder:
    return FmriEncoder(22, patch_size=4, embed_dim=8, depth=1, num_heads=2, condition_length=5, condition_width=12,
                       dropout=0.0)  # fmt: skip


def align_task(broken: int | None = None) -> AlignTask:
    torch.manual_seed(1)
    encoder = make_encoder()
    data = AlignData(FakeWindows(broken), TokenTarget(text(), ["", *WORDS[1:]]), None)
    settings = Align(batch_size=5, token_weight=0.5, loss="text", word_swap=False, sparsify=0.2, input_noise=0.1)
    return AlignTask(encoder, data, data, settings, FixedViews(data, settings), {}, CPU)


def masked_task() -> MaskedBrainTask:
    torch.manual_seed(2)
    model = MaskedBrainModel(22, patch_size=4, embed_dim=8, depth=1, num_heads=2, decoder_embed_dim=6, decoder_depth=1,
                             decoder_num_heads=3, mask_ratio=0.5)  # fmt: skip
    scans = np.random.default_rng(5).standard_normal((13, 22)).astype(np.float32)
    return MaskedBrainTask(model, lambda index: scans[index], np.arange(10), np.arange(10, 13), 0, CPU)


def two_layouts() -> list[VoxelLayout]:
    """Of 22 and 17 voxels; each has an area that the other has not."""
    counts = ({"L_V1": 8, "R_V1": 5, "L_MT": 9}, {"L_V1": 6, "R_V1": 4, "L_V4": 7})
    vertex = [np.concatenate([area_of(name)[:n] for name, n in each.items()]).astype(np.int32) for each in counts]
    return [VoxelLayout(len(own), str(number), own, area_labels()[own]) for number, own in enumerate(vertex)]


class TwoPeoplesWindows(FakeWindows):
    """Six of one person and five of another."""

    def __init__(self) -> None:
        super().__init__()
        self.person, self.voxels = np.arange(11) % 2, [22, 17]
        self.scans[self.person == 1, :, 17:] = 0


def people_task() -> AlignTask:
    """A batch's share of a process may have no scans of one of the two."""
    torch.manual_seed(5)
    sizes = {"window": 2, "condition_length": 5, "condition_width": 12, "input_scale": 1.5}
    architecture = {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    encoder = AreaEncoder.build(two_layouts(), sizes, architecture, head_rank=4, dropout=0.0)
    data = AlignData(TwoPeoplesWindows(), TokenTarget(text(), ["", *WORDS[1:]]), None)
    settings = Align(batch_size=5, token_weight=0.5, loss="text", word_swap=False, sparsify=0.2, mixup=0.6)
    return AlignTask(
        encoder, data, data, settings, FixedViews(data, settings), {}, CPU, TokenRegression(data, settings)
    )


def masked_people_task() -> MaskedBrainTask:
    torch.manual_seed(6)
    layouts, windows = [layout.to_config() for layout in two_layouts()], TwoPeoplesWindows()
    model = MaskedAreaModel(layouts, embed_dim=8, depth=1, num_heads=2, decoder_embed_dim=6, decoder_depth=1,
                            decoder_num_heads=3, mask_ratio=0.5)  # fmt: skip
    take = lambda index: windows.scans[index, 0]  # noqa: E731
    return MaskedBrainTask(model, take, np.arange(9), np.arange(9, 11), 0, CPU, windows.person)


def make_unet() -> VideoUNet:
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=3, out_channels=3, block_out_channels=(4, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2, norm_num_groups=2,
    )  # fmt: skip
    return VideoUNet.from_unet2d(unet)


def animate_task() -> AnimateTask:
    torch.manual_seed(3)
    unet, latents, row = make_unet(), torch.randn(11, 2, 3, 4, 4), torch.arange(11)
    return AnimateTask(unet, Diffusion({}), latents, text(), row, 0.2, CPU)


def distill_task() -> DistillTask:
    torch.manual_seed(4)
    settings = Distill(batch_size=5, sampler_steps=3, teacher_steps=2, caption_share=0.4, input_noise=0.2)
    teacher = Teacher(
        make_unet(),
        Ddim(Diffusion({"prediction_type": "v_prediction"})),
        Reconstruct(guidance_scale=2.0),
        settings.teacher_steps,
    )
    latents = torch.randn(11, 2, 3, 4, 4)
    return DistillTask(make_unet(), teacher, make_encoder(), FakeWindows(), latents, text(), settings, CPU)


TASKS = {"align": align_task, "masked": masked_task, "animate": animate_task, "distill": distill_task}
TASKS |= {"people": people_task, "masked_people": masked_people_task}
MODELS = {"align": "encoder", "masked": "model", "animate": "unet", "distill": "student", "people": "encoder",
          "masked_people": "model"}  # fmt: skip
"""The attribute of each task that is trained."""


def optimise(**changes: object) -> Optimise:
    values = {"steps": 4, "lr": 0.01, "batch_size": 5, "precision": "fp32", "log_every": 1, "checkpoint_every": 2,
              "ema_decay": 0.9, "accumulate": 2}  # fmt: skip
    return Optimise(**(values | changes))


def train_all(folder: Path) -> None:
    for name, task in TASKS.items():
        clip_grad = 0.8 if name == "masked" else None  # clipped gradients would hide a wrong scale
        lr = 1e-3 if name == "distill" else 1e-2  # the whole generator learns: rounding in its smallest gradients shows
        train(task(), optimise(clip_grad=clip_grad, lr=lr), folder / name, seed=6)


@contextmanager
def telling_a_lost_partner() -> Iterator[None]:
    """As the command line does."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_peer_lost(error):
            raise
        sys.exit("the other process has ended")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """``shared_tasks.py FOLDER``: every task, then one whose window 7 is broken."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    distributed.init_process_group()
    with telling_a_lost_partner():
        train_all(folder)
    broken = align_task(broken=7)
    try:
        train(broken, optimise(steps=40, accumulate=1), folder / "broken", seed=6)
    except TrainingError as error:
        after = list(broken.parameters().values())
        message = {"error": str(error), "n_steps": len(losses(folder / "broken"))}
        message["is_finite"] = all(bool(torch.isfinite(parameter).all()) for parameter in after)
        (folder / f"error_{distributed.rank()}.json").write_text(json.dumps(message))


if __name__ == "__main__":
    main()
