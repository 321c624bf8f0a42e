"""A whole run folder with random but valid files, small enough to be made in a second."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr
from PIL import Image

from mindvideo.clip_sets import clip_set
from mindvideo.data.writing import StoreWriter

N, F, H, W = 26, 6, 32, 32
KINDS = ("truth", "reconstruction", "shuffled", "mean", "random_train", "constant", "caption", "vae")
ROLES = {"shuffled": "control", "mean": "control", "random_train": "baseline", "constant": "baseline"}
ROLES |= {"caption": "ceiling", "vae": "ceiling"}


WAYS = {"ssim_rgb": 0.62, "image_2way": 0.87, "image_50way": 0.413, "video_50way": 1.72, "epe": -1.31}
"""From shuffled brain to true caption, beyond both ends too."""


def moving_clips(rng: np.random.Generator) -> np.ndarray:
    """A bright disc that moves over a coloured ground, uint8 (N, F, H, W, 3)."""
    y, x = np.mgrid[:H, :W]
    clips = np.empty((N, F, H, W, 3), np.uint8)
    for i in range(N):
        ground, disc = rng.integers(30, 200, 3), rng.integers(60, 255, 3)
        start, step = rng.uniform(8, 24, 2), rng.uniform(-2.5, 2.5, 2)
        for frame in range(F):
            cy, cx = start + step * frame
            inside = ((y - cy) ** 2 + (x - cx) ** 2 < 50)[..., None]
            clips[i, frame] = np.where(inside, disc, ground * (0.6 + 0.4 * y[..., None] / H))
    return clips


def write_clips(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    truth = moving_clips(rng)
    group = zarr.create_group(folder / "clips.zarr", attributes={"names": list(KINDS), "labels": {}, "complete": True})
    for kind in KINDS:
        other = {"truth": truth, "constant": np.broadcast_to(truth.mean((0, 1), keepdims=True), truth.shape)}
        mixed = (
            0.6 * truth + 0.4 * moving_clips(rng) if kind in ("reconstruction", "vae", "caption") else moving_clips(rng)
        )
        group.create_array(kind, data=np.asarray(other.get(kind, mixed)).astype(np.uint8), chunks=(1, F, H, W, 3))
    windows = [
        {
            "segment": f"test{1 + i // 13}",
            "scan": i % 13,
            "scene": i // 2,
            "block": i // 5,
            "caption": f"A red car {i} drives past a house.",
        }
        for i in range(N)
    ]
    (folder / "windows.json").write_text(json.dumps(windows))


def write_scores(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """scores.json and windows.csv; returns each score's value per window."""
    folder.mkdir()
    levels = {"ssim_rgb": 0.31, "image_2way": 0.83, "image_50way": 0.21, "video_50way": 0.24, "epe": 1.9}
    words = {
        "ssim_rgb": ("SSIM RGB", "layout"), "image_2way": ("image 2-way", "content"),
        "image_50way": ("image 50-way", "content"), "video_50way": ("video 50-way", "content"),
        "epe": ("flow end-point error", "motion"),
    }  # fmt: skip
    values = {name: np.clip(rng.normal(level, 0.2 * level, N), 0, None) for name, level in levels.items()}
    scores: dict[str, Any] = {}
    for name, value in values.items():
        mean = float(value.mean())
        constant = mean * (1.02 if name == "ssim_rgb" else 0.7)
        controls = {"shuffled": mean * 0.5, "mean": mean * 0.6, "random_train": mean * 0.45, "constant": constant}
        films = {
            film: {"value": mean * share, "interval": [mean * share * 0.8, mean * share * 1.2], "n": N // 2,
                   "controls": {key: other * share for key, other in controls.items()}}
            for film, share in (("test1", 0.9), ("test2", 1.1))
        }  # fmt: skip
        scores[name] = {
            "value": mean, "interval": [mean * 0.9, mean * 1.1], "n": N, "chance": mean * 0.4,
            "label": words[name][0], "family": words[name][1],
            "needs": {"layout": "frames", "content": "images", "motion": "flow"}[words[name][1]], "films": films,
            "controls": controls | {"caption": mean * 1.3, "vae": mean * 1.5},
            "p": {"shuffled": 0.0002, "mean": 0.004, "random_train": 0.03, "constant": 0.62},
            "p_holm": {"shuffled": 0.001, "mean": 0.02, "random_train": 0.15, "constant": 1.0},
            "roles": ROLES, "way_to_caption": WAYS[name], "way_to_caption_interval": [WAYS[name] - 0.21, WAYS[name] + 0.13],
            "definition": f"what {name} means", "higher_is_better": name != "epe",
        }  # fmt: skip
    scores["consistency"] = {
        "value": 0.93,
        "label": "consistency",
        "n": N,
        "chance": None,
        "controls": {"shuffled": None},
        "p": {},
        "truth": 0.97,
    }
    scores["consistency"]["higher_is_better"] = None
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "scores.csv").write_text(
        "score,value\n" + "".join(f"{name},{each['value']}\n" for name, each in scores.items())
    )
    about = {
        "truth": "films", "networks": "kit", "left_out": {"caption_f1": "no captioner", "epe_farneback": "no captioner"},
        "sets": {name: asdict(clip_set(name, "train_mean")) for name in ROLES}, "smallest_p": 0.000763,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(about))
    columns = [f"{name}{end}" for name in values for end in ("", ":shuffled")]
    with (folder / "windows.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["window", "segment", "scan", "scene", "block", *columns])
        for i in rng.permutation(N):  # the reader must go by segment and scan, not by the row
            place = [i, f"test{1 + i // 13}", i % 13, i // 2, i // 5]
            writer.writerow([*place, *(v for value in values.values() for v in (value[i], value[i] / 2))])
    return values


def write_rival(path: Path, rng: np.random.Generator) -> None:
    """A rival method: the layout of a run with scores alone."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump({"name": "rival"}))
    write_scores(path / "evaluate", rng)


def write_store(path: Path, rng: np.random.Generator) -> None:
    vertex = rng.choice(59412, 1400, replace=False)
    splits = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1"]}
    reproducibility = rng.uniform(0.1, 0.5, 59412)
    with StoreWriter(
        path,
        subject="subject1",
        tr_s=2.0,
        lag_s=4.0,
        fps=3,
        size=16,
        splits=splits,
        vertex=vertex,
        reproducibility=reproducibility,
    ) as writer:
        for k, name in enumerate(("seg1", "seg2", "seg3", "test1")):
            n, runs = 11 + k, 2 if k < 3 else 5
            writer.write_fmri(name, np.zeros((n, 1400), np.float32), np.zeros((runs, n, 1400), np.float32))
            writer.write_frames(name, np.zeros((n, 6, 16, 16, 3), np.uint8))
            writer.write_scene(name, np.full((n, 6), k, np.int32))
            writer.write_captions(name, ["a dog"] * n, [["a dog"] * 6] * n)
        writer.add_step("trim", volumes={"seg": [1, 4]})
        writer.add_step("select", rule="paper", alpha=0.01, tested=59412)
        writer.add_sources({"subject1/fmri/seg1/seg1_1.dtseries.nii": "0" * 64})
        writer.finish()


def write_metrics(folder: Path, rng: np.random.Generator, steps: int) -> None:
    folder.mkdir()
    lines = []
    for step in range(0, steps, 5):
        loss = 0.4 + np.exp(-step / 60) + 0.02 * rng.normal()
        row = {
            "step": step,
            "loss": loss,
            "contrastive_loss": 2 * loss,
            "token_loss": loss / 2,
            "lr": 1e-3,
            "steps_per_s": 7.5,
        }
        if step % 20 == 0:
            row |= {
                "validation_token_r2": 1 - loss,
                "ridge_token_r2": 0.31,
                "validation_loss": loss + 0.1,
                "mean_predictor_loss": 1.0,
            }
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99')  # as a killed run leaves it


def write_explain(folder: Path, rng: np.random.Generator) -> None:
    names = ("visual central", "visual peripheral", "salience / ventral attention A", "default A", "limbic A")
    stages, layers = ("adapt", "align", "cotrain"), ("first", "middle", "last")

    def shares() -> dict[str, float]:
        return dict(zip(names, [*rng.dirichlet([9, 5, 2, 1]).tolist(), 0.0], strict=True))

    files: dict[str, Any] = {
        "attention": {stage: {layer: shares() for layer in layers} for stage in stages},
        "networks": {name: {"voxels": 10, "share": share} for name, share in shares().items()},
        "temporal": {stage: {layer: {"+4 s": 0.7, "+6 s": 0.3} for layer in layers} for stage in stages[1:]},
    }
    areas = {f"A{i}": {"n_voxels": 5, "text": i / 100, "image": 0.01, "tokens": (i - 2) / 50} for i in range(31)}
    intact = {"text": 0.5, "image": 0.4, "tokens": 0.6}
    files["occlusion"] = {"stage": "cotrain", "n_windows": N, "intact": intact, "areas": areas}
    files["occlusion"]["measures"] = {"tokens": "correlation with the text tokens"}
    maps = {f"attention_{stage}_{layer}": rng.uniform(0.5, 0.9) for stage in stages for layer in layers}
    maps |= {"occlusion_tokens": 0.93}
    untrained = {"attention_last": [0.41, 0.52, 0.6], "occlusion_tokens": [0.47, 0.5, 0.51]}
    drop = {group: dict.fromkeys(intact, value) for group, value in (("informative", 0.4), ("other", 0.05))}
    files["truth"] = {
        "n_voxels": 1400, "n_informative": 600, "auc": maps, "auc_random": [0.46, 0.5, 0.54],
        "rank_correlation": {name: value - 0.5 for name, value in maps.items()}, "auc_untrained": untrained,
        "ablation": {"n_silenced": 600, "intact": intact, "drop": drop},
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "surface_occlusion_tokens.html").write_text("<p>a surface that turns</p>")
    for name in ("flat_attention_adapt_last", "flat_attention_cotrain_last", "inflated_occlusion_tokens"):
        picture = rng.integers(0, 255, (12, 24, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        Image.fromarray(picture).save(folder / f"{name}.png")


def write_ablation(folder: Path) -> None:
    """The table of two variants, two scores and two seeds."""
    scores = {
        name: {"value": value, "sd": 0.0123, "seeds": [value, value], "n": N, "interval": [value - 0.1, value + 0.1]}
        for name, value in (("ssim_rgb", 0.3456), ("video_50way", 0.2345))
    }
    tested = {
        "p": 0.0021, "p_holm": 0.0042, "p_class": "p<0.01", "difference": -0.0456, "difference_interval": [-0.2, -0.1]
    }  # fmt: skip
    row = {"also": [], "changes": {}, "seconds": 75.5, "runs": {}}
    columns = [
        {"score": name, "label": name, "definition": "what it is", "higher_is_better": True, "chance": 0.0678}
        for name in scores
    ]
    content = {
        "format": "mindvideo-ablation", "version": 1, "recipe": "made-up", "is_simulated": True, "seeds": [0, 1],
        "correction": "Holm", "smallest_p": 0.00195, "columns": columns,
        "rows": [
            row | {"name": "full", "label": "full method", "scores": scores},
            row | {"name": "no_guidance", "label": "without guidance", "changes": {"reconstruct.guidance_scale": 1.5},
                   "scores": {name: cell | tested for name, cell in scores.items()}},
        ],
        "references": [{"name": "shuffled", "role": "control", "scores": scores}],
        "films": [{"film": "test1", "name": name, "label": name, "value": 0.2987, "interval": [0.2, 0.4], "n": N}
                  for name in ("full", "shuffled")],
    }  # fmt: skip
    (folder / "ablation.json").write_text(json.dumps(content))


def make_run(path: Path, seed: int = 3, **recipe: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    path.mkdir()
    settings = {
        "name": "made-up",
        "foundation": "embedded",
        "simulate": {"train_segments": 3},
        "data": {"fps": 3},
        "align": {"steps": 200},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(settings | recipe))
    write_store(path / "prepare" / "store.zarr", rng)
    for stage, steps in (("pretrain", 150), ("align", 200), ("cotrain", 90)):
        write_metrics(path / stage, rng, steps)
    write_clips(path / "reconstruct", rng)
    values = write_scores(path / "evaluate", rng)
    pair = {"test_segment": "test1", "test_scan": 3, "train_segment": "seg2", "train_scan": 5, "correlation": 0.9871}
    near = {"count": 1, "test_scans": 11, "pairs": [pair]}
    (path / "evaluate" / "near_duplicates.json").write_text(json.dumps(near))
    (path / "evaluate" / "noise_ceiling.json").write_text(json.dumps({"test1": {"runs": 5, "median": 0.71}}))
    write_rival(path / "baselines" / "ridge", rng)
    (path / "explain").mkdir()
    write_explain(path / "explain", rng)
    for stage, seconds in (("prepare", 12.3), ("pretrain", 64.0), ("reconstruct", 4000.0), ("evaluate", 3.0)):
        done = {
            "stage": stage,
            "seconds": seconds,
            "peak_memory_bytes": 1.25e9,
            "finished": "2025-01-02 03:04",
            "code": "0.1.0+abc",
            "precision": "bf16" if stage == "pretrain" else None,
            "machine": {"commit": "0123abc", "processor": "A <fast> one", "memory_bytes": 64e9, "torch": "2.99.1"},
        }
        (path / stage / "done.json").write_text(json.dumps(done))
    return values
