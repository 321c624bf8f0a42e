"""The text tower, taught what words mean: captions alone, no pictures.

A tower that learns from stills alone hardly tells motion words apart, and nothing behind it can. Here the end token must
tell every attribute of both scenes of a caption, a padding token behind it the same, each token its own word; and captions
that differ in one attribute must lie a given share of the tokens' variance apart.

Shapes: B captions, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModelWithProjection

from mindvideo.simulate.scenes import (
    CAMERAS,
    COLOURS,
    COLUMNS,
    LIGHTS,
    MOTIONS,
    PLACES,
    ROWS,
    SIZES,
    SPEEDS,
    THINGS,
    Scene,
    draw_scene,
    scene_caption,
)

ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "thing": THINGS, "colour": COLOURS, "size": SIZES, "place": PLACES, "motion": MOTIONS, "speed": SPEEDS,
    "camera": CAMERAS, "light": LIGHTS, "column": (None, *COLUMNS), "row": (None, *ROWS),
}  # fmt: skip
APART = dict.fromkeys(ATTRIBUTES, 0.25) | {"thing": 0.5, "motion": 0.5}
"""Squared distance, over the tokens' variance, that captions with another value of an attribute keep at least."""
MARGIN = 1.2

Told = tuple[Scene, tuple[str | None, str | None]]


def tell(rng: np.random.Generator) -> Told:
    """A scene from all compositions, and where its thing is said to be."""
    where = (ATTRIBUTES["column"][rng.integers(4)], ATTRIBUTES["row"][rng.integers(3)])
    return draw_scene(rng, None), where


def values(told: Told) -> dict[str, Any]:
    """The value of every attribute."""
    scene, (column, row) = told
    return {name: getattr(scene, name) for name in ATTRIBUTES if name not in ("column", "row")} | {
        "column": column, "row": row,
    }  # fmt: skip


def swap(told: Told, name: str, rng: np.random.Generator) -> Told:
    """The same with another value of one attribute."""
    scene, (column, row) = told
    others = [value for value in ATTRIBUTES[name] if value != values(told)[name]]
    other = others[rng.integers(len(others))]
    if name == "column":
        return scene, (other, row)
    if name == "row":
        return scene, (column, other)
    return replace(scene, **{name: other}), (column, row)


def swappable(told: Told) -> list[str]:
    """Attributes whose swap changes the caption: what stands still has no speed."""
    return [name for name in ATTRIBUTES if name != "speed" or told[0].motion != "still"]


def encode(tokenizer: Any, captions: list[str], length: int) -> torch.Tensor:
    """(B, L) token numbers; a caption that does not fit is an error."""
    rows = tokenizer(captions, padding="max_length", max_length=length, truncation=False).input_ids
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(f"expected captions of at most {length} tokens, found {longest}: {captions}")
    return torch.tensor(rows)


def apart(text: CLIPTextModelWithProjection, tokenizer: Any, count: int = 96, seed: int = 99) -> dict[str, float]:
    """For each attribute, the mean squared distance of the tokens of captions that differ in it, over their variance."""
    rng, length = np.random.default_rng(seed), text.config.max_position_embeddings
    told = [tell(rng) for _ in range(count)]
    found = {}
    with torch.no_grad():
        base = text(encode(tokenizer, [scene_caption(*each) for each in told], length)).last_hidden_state
        variance = base.flatten(0, 1).var(0).sum()
        for name in ATTRIBUTES:
            rows = [i for i in range(count) if name in swappable(told[i])]
            other = [scene_caption(*swap(told[i], name, rng)) for i in rows]
            tokens = text(encode(tokenizer, other, length)).last_hidden_state
            found[name] = float((tokens - base[rows]).square().sum(-1).mean() / variance)
    return found


class WordsTask:
    """The loss; one caption in four tells of two scenes."""

    def __init__(self, text: CLIPTextModelWithProjection, tokenizer: Any, batch: int) -> None:
        self.text, self.tokenizer, self.batch = text, tokenizer, batch
        width = text.config.hidden_size
        self.heads = nn.ModuleDict({f"{which}_{name}": nn.Linear(width, len(names) + (which == "second"))
                                    for which in ("first", "second") for name, names in ATTRIBUTES.items()})  # fmt: skip
        self.other = nn.ModuleDict(
            {"thing": nn.Linear(width, len(THINGS) + 1), "colour": nn.Linear(width, len(COLOURS) + 1)}
        )
        self.word = nn.Linear(width, len(tokenizer))

    def modules(self) -> nn.ModuleDict:
        """What learns."""
        return nn.ModuleDict({"text": self.text, "heads": self.heads, "other": self.other, "word": self.word})

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Attributes, words and distances."""
        told = [tell(rng) for _ in range(self.batch)]
        seconds = [tell(rng) if rng.random() < 0.25 else None for _ in range(self.batch)]
        names = [str(rng.choice(swappable(each))) for each in told]
        swapped = [swap(each, name, rng) for each, name in zip(told, names, strict=True)]

        def say(first: Told, second: Told | None) -> str:
            said = scene_caption(*first, rng)
            return said if second is None else f"{said}. Then {scene_caption(*second, rng)}"

        length = self.text.config.max_position_embeddings
        captions = [say(a, b) for a, b in zip(told, seconds, strict=True)]
        ids = encode(self.tokenizer, captions, length)
        alone = [i for i, second in enumerate(seconds) if second is None]
        pairs = [scene_caption(*told[i]) for i in alone] + [scene_caption(*swapped[i]) for i in alone]
        tokens = self.text(torch.cat([ids, encode(self.tokenizer, pairs, length)])).last_hidden_state
        own, base, other = tokens.split([self.batch, len(alone), len(alone)])

        end = (ids == self.tokenizer.eos_token_id).int().argmax(1)
        later = end + torch.from_numpy(rng.integers(0, np.maximum(length - end.numpy(), 1)))
        rows = torch.arange(self.batch)
        attributes = torch.zeros(())
        for at in (own[rows, end], own[rows, later.clamp(max=length - 1)]):
            for name, choices in ATTRIBUTES.items():
                first = torch.tensor([choices.index(values(each)[name]) for each in told])
                second = torch.tensor([len(choices) if each is None else choices.index(values(each)[name])
                                       for each in seconds])  # fmt: skip
                known = torch.tensor([name in swappable(each) for each in told])
                attributes = attributes + F.cross_entropy(self.heads[f"first_{name}"](at)[known], first[known])
                attributes = attributes + 0.5 * F.cross_entropy(self.heads[f"second_{name}"](at), second)
            for name, choices, part in (("thing", THINGS, 0), ("colour", COLOURS, 1)):
                seen = torch.tensor([len(choices) if each[0].other is None else choices.index(each[0].other[part])
                                     for each in told])  # fmt: skip
                attributes = attributes + 0.5 * F.cross_entropy(self.other[name](at), seen)
        until = torch.arange(length) <= end[:, None]
        words = F.cross_entropy(self.word(own[until]), ids[until])

        variance = base.flatten(0, 1).var(0).sum()
        distance = (base - other).square().sum(-1).mean(1) / variance
        short = torch.zeros(())
        for name, wanted in APART.items():
            of = [k for k, i in enumerate(alone) if names[i] == name]
            if of:
                short = short + F.relu(MARGIN * wanted - distance[of].mean()) / wanted
        loss = 0.5 * attributes + words + 2.0 * short
        return loss, {
            "attributes": float(attributes.detach()),
            "words": float(words.detach()),
            "short": float(short.detach()),
        }
