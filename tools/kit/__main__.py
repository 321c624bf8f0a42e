"""Train one part of the kit.

    python -m kit PART STATE --kit KIT [--steps N --batch N --lr X]

``KIT`` is a foundation folder (`kit.parts` builds an untrained one); the part's weights there are the start, and are
replaced at the end. ``STATE`` keeps what a killed run needs. Parts: words, image_classifier, video_classifier,
image_encoder, captioner, image_judge, video_judge, and reader, which helps to train the generator and is not shipped. The
generator has a module of its own (`kit.generator`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from kit import judges, reader, seeing, words
from kit.loop import run
from kit.pool import Pool
from kit.save import save_part
from mindvideo.evaluate.judges import Judge
from mindvideo.models.foundation import Foundation

CLIPS, JUDGE_SEED = 12_000, 1
SETTINGS: dict[str, tuple[int, int, float]] = {
    "words": (1500, 64, 1e-3),
    "image_classifier": (2000, 64, 5e-4),
    "video_classifier": (2500, 24, 4e-4),
    "image_encoder": (1500, 96, 5e-4),
    "captioner": (1500, 48, 5e-4),
    "image_judge": (2500, 64, 2e-3),
    "video_judge": (2500, 32, 2e-3),
    "reader": (1500, 48, 2e-3),
}
"""Steps, batch and learning rate of each part."""


def _load(kind: Any, folder: Path, **more: Any) -> Any:
    return kind.from_pretrained(folder, local_files_only=True, **more).float().train()


def train_part(part: str, state: Path, kit: Path, steps: int, batch: int, lr: float) -> None:
    """Train a part to its end and put its weights into ``kit``."""
    torch.manual_seed(0)
    if part == "words":
        text, tokenizer = (
            _load(CLIPTextModelWithProjection, kit / "text_encoder"),
            CLIPTokenizer.from_pretrained(kit / "tokenizer"),
        )
        run(words.WordsTask(text, tokenizer, batch), state, steps, lr, weight_decay=0.0, bf16=False)
        save_part(text, kit / "text_encoder")
        print(words.apart(text.eval(), tokenizer))
        return
    pool = Pool(state.parent / "pool", CLIPS, JUDGE_SEED if "judge" in part else 0)
    if "judge" in part:
        judge = Judge(part.removesuffix("_judge"))
        run(judges.JudgeTask(judge, pool, batch), state, steps, lr)
        judges.save_judge(judge, kit / "judges")
        return
    if part == "reader":
        latents = reader.encode_pool(Foundation(kit), pool, state / "latents.npy")
        reads = reader.LatentReader()
        run(reader.ReaderTask(reads, latents, reader.labels_of(pool.clips), batch), state, steps, lr)
        reader.save_reader(reads, kit)
        return
    model: Any
    if part == "image_encoder":
        text, tokenizer = (
            _load(CLIPTextModelWithProjection, kit / "text_encoder"),
            CLIPTokenizer.from_pretrained(kit / "tokenizer"),
        )
        model = _load(CLIPVisionModelWithProjection, kit / part, attn_implementation="eager")
        run(seeing.ImageTowerTask(text, model, tokenizer, pool, batch), state, steps, lr)
        save_part(text, kit / "text_encoder")
    elif part == "captioner":
        model = _load(BlipForConditionalGeneration, kit / part, attn_implementation="eager")
        run(seeing.CaptionerTask(model, BertTokenizer.from_pretrained(kit / part), pool, batch), state, steps, lr)
    else:
        kind = ViTForImageClassification if part == "image_classifier" else VideoMAEForVideoClassification
        model = _load(kind, kit / part, attn_implementation="eager")
        run(
            seeing.ClassifierTask(model, pool, "colour" if part == "image_classifier" else "motion", batch),
            state,
            steps,
            lr,
        )
    save_part(model, kit / part)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=SETTINGS)
    parser.add_argument("state", type=Path)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    given = parser.parse_args()
    steps, batch, lr = SETTINGS[given.part]
    torch.set_num_threads(1)
    train_part(given.part, given.state, given.kit, given.steps or steps, given.batch or batch, given.lr or lr)


if __name__ == "__main__":
    main()
