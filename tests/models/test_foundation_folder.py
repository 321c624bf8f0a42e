"""A foundation folder as people have it: links, half precision, shards, pointers, other classes; and captions that fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mindvideo.config import load_recipe
from mindvideo.errors import ModelError
from mindvideo.models.foundation import PARTS, Foundation
from mindvideo.preflight import refusals
from mindvideo.sizing import PUBLISHED, Networks
from mindvideo.train.augmentation import augment_captions
from mindvideo.train.features import TextFeatures, note_long_captions

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265880\n"


@pytest.fixture
def kit(random_kit: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_kit, tmp_path / "kit")


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def refused(kit: Path) -> list[str]:
    tiny = Path(__file__).parents[1] / "tiny.yaml"
    return [str(error) for error in refusals(load_recipe(str(tiny), [f"foundation={kit}", "data.captions=blip"]))]


def halve(path: Path, name: str) -> None:
    save_file({key: weight.half() for key, weight in load_file(path).items()}, path.with_name(name), {"format": "pt"})
    path.unlink()


def shard(path: Path) -> tuple[str, str]:
    """The weights in two files and an index, as large models are stored."""
    whole = load_file(path)
    names = [f"{path.stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    place = {key: names[index % 2] for index, key in enumerate(sorted(whole))}
    for name in names:
        save_file({key: whole[key] for key in place if place[key] == name}, path.with_name(name), {"format": "pt"})
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    path.unlink()
    return names[0], names[1]


def test_half_precision_shards_and_pickles_load_in_float32(kit: Path) -> None:
    whole = {part: getattr(Foundation(kit), part).state_dict() for part in ("unet", "vae", "text_encoder")}
    assert refused(kit) == []
    halve(weights(kit / "unet"), "diffusion_pytorch_model.fp16.safetensors")
    shard(weights(kit / "text_encoder"))
    torch.save(load_file(weights(kit / "vae")), kit / "vae" / "diffusion_pytorch_model.bin")
    weights(kit / "vae").unlink()
    assert refused(kit) == []
    for part, expected in whole.items():
        found = getattr(Foundation(kit), part).state_dict()
        for name, weight in expected.items():
            rounded = weight.half().float() if part == "unet" else weight
            assert found[name].dtype == torch.float32 and torch.equal(found[name], rounded), (part, name)


def test_memory_is_counted_of_halved_weights_and_where_they_are_gone(kit: Path) -> None:
    networks = Networks(load_recipe("demo", [f"foundation={kit}"]))
    whole = networks.part_bytes("unet")
    halve(weights(kit / "unet"), "diffusion_pytorch_model.fp16.safetensors")
    assert networks.part_bytes("unet") == pytest.approx(whole, rel=0.1)
    weights(kit / "unet").unlink()
    (kit / "unet" / "diffusion_pytorch_model.safetensors").symlink_to("blobs/gone")
    assert networks.part_bytes("unet") == 4 * PUBLISHED["unet"].parameters


def test_check_opens_every_weight_file(kit: Path) -> None:
    """One fault a part; each is found from headers alone, named with its file, and nothing else is."""
    second = shard(weights(kit / "text_encoder"))[1]
    (kit / "text_encoder" / second).unlink()
    weights(kit / "unet").write_text(POINTER)
    whole = weights(kit / "vae").read_bytes()
    weights(kit / "vae").write_bytes(whole[:-40])
    shutil.rmtree(kit / "image_classifier")
    shutil.copytree(kit / "image_encoder", kit / "image_classifier")
    weights(kit / "video_classifier").unlink()
    (kit / "video_classifier" / "tf_model.h5").write_bytes(b"x")
    weights(kit / "image_encoder").write_text("<!DOCTYPE html><html>log in</html>")
    (kit / "captioner" / "preprocessor_config.json").unlink()
    said = refused(kit)
    (kit / "vae" / "config.json").write_text(POINTER)
    assert any(
        re.search(r"vae/config\.json, found a pointer .* run: git lfs pull", sentence) for sentence in refused(kit)
    )
    for pattern in (
        rf"expected weights in .*text_encoder/{second}, found no such file",
        r"unet/diffusion_pytorch_model\.safetensors, found a pointer .* run: git lfs pull",
        r"load AutoencoderKL from .*vae, found: .*(incomplete|covered|Unable)",
        r"expected the weights of ViTForImageClassification in .*image_classifier, found those of CLIPVision",
        r"expected weights such as .* in .*video_classifier, found tf_model\.h5;",
        r"image_encoder/model\.safetensors, found a web page",
        r"the part 'captioner' in .* to load",
    ):
        assert sum(bool(re.search(pattern, sentence)) for sentence in said) == 1, (pattern, said)
    # The image encoder in the image classifier's place has two classes: too few for 50-way, which is said as well.
    assert sorted("n_ways" in sentence for sentence in said) == [False] * 7 + [True], said


@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("scheduler", "tokenizer")])
def test_a_lost_weight_is_found_before_anything_runs(kit: Path, part: str) -> None:
    path = weights(kit / part)
    whole = load_file(path)
    lost = next(name for name in sorted(whole) if name.endswith(".weight"))
    save_file({name: weight for name, weight in whole.items() if name != lost}, path, {"format": "pt"})
    (sentence,) = refused(kit)
    assert lost.rpartition(".")[0].rpartition(".")[2] in sentence and f"/{part}" in sentence


def test_a_tokenizer_without_its_vocabulary_is_refused(kit: Path) -> None:
    """transformers makes one of a few special tokens in silence: every word would be the same unknown one."""
    (kit / "tokenizer" / "tokenizer.json").unlink()
    (sentence,) = refused(kit)
    assert "expected a tokenizer of about" in sentence and "vocab.json and merges.txt" in sentence


def test_a_tokenizer_as_vocabulary_and_merges_gives_the_same_tokens(kit: Path, random_kit: Path) -> None:
    folder = kit / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "tokenizer.json").unlink()
    captions = ["a red ball rolling left", "A dog. Then a cat", ""]
    assert torch.equal(Foundation(kit).tokenize(captions), Foundation(random_kit).tokenize(captions))


def test_what_lies_behind_links_is_what_is_hashed(kit: Path, tmp_path: Path) -> None:
    store, before = tmp_path / "store", Foundation(kit)
    names = ("identity", "condition_identity", "latent_identity", "captioner_identity")
    plain = {name: getattr(before, name) for name in names}
    kit.rename(store)
    kit.mkdir()
    for part in store.iterdir():
        (kit / part.name).symlink_to(Path("..") / "store" / part.name)
    assert {name: getattr(Foundation(kit), name) for name in names} == plain and len(set(plain.values())) == 4
    path = weights(store / "vae")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    changed = {name for name in names if getattr(Foundation(kit), name) != plain[name]}
    assert changed == {"identity", "latent_identity"}
    shutil.rmtree(store / "captioner")
    with pytest.raises(ModelError, match="expected files of captioner"):
        _ = Foundation(kit).captioner_identity


def test_the_end_of_a_caption_longer_than_the_text_encoder_reads_is_left_out_and_counted(
    kit: Path, tmp_path: Path
) -> None:
    foundation = Foundation(kit)
    length = foundation.condition_length
    words = length - 2  # one token each, between the first and the last
    whole, longer = "a " * words, "a " * (words + 1)
    tokens = foundation.tokenize([whole])
    assert tokens.shape == (1, length)
    assert torch.equal(foundation.tokenize([longer]), tokens)
    assert foundation.list_too_long([whole, longer, ""]) == [longer]
    note_long_captions(tmp_path, foundation, TextFeatures({whole: 0, "": 1}, torch.zeros(2), torch.zeros(2)))
    assert not (tmp_path / "remarks.json").exists()
    note_long_captions(tmp_path, foundation, TextFeatures({whole: 0, longer: 1}, torch.zeros(2), torch.zeros(2)))
    (line,) = json.loads((tmp_path / "remarks.json").read_text())["lines"]
    assert line.endswith(f"the text encoder's {length} positions, their ends left out (1 of 2): {longer}")


def test_a_synonym_makes_no_caption_too_long(kit: Path) -> None:
    """A caption that fills the text encoder to its last position keeps its word; a short one does not."""
    foundation = Foundation(kit)
    of_dog = len(foundation.tokenizer("dog").input_ids)  # with the first and the last token
    short, full = "dog", "a " * (foundation.condition_length - of_dog) + "dog"
    assert foundation.list_too_long([full, f"a {full}"]) == [f"a {full}"]
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    found = augment_captions([short, full] * 30, {"dog": ("big furry animal",)}, rngs, foundation)
    assert foundation.list_too_long(found) == []
    assert {"furry" in text for text in found[::2]} == {True, False}
    assert not any("furry" in text for text in found[1::2])
