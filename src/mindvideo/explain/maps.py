"""Stage ``explain``: attention and occlusion maps of the encoder, compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindvideo.atlas import YEO17_NAMES, yeo17_labels
from mindvideo.config import Recipe
from mindvideo.data.store import Store, listed, open_stores, person_folders
from mindvideo.data.windows import Windows, spread_evenly
from mindvideo.errors import ModelError
from mindvideo.explain import attention, occlusion
from mindvideo.explain.recovery import (
    UNTRAINED,
    Maps,
    ablate_areas,
    ablate_truth,
    compare_with_truth,
    read_truth,
    untrained_like,
)
from mindvideo.explain.surfaces import draw_flat_map, draw_inflated, draw_networks, write_interactive
from mindvideo.files import beside, write_json
from mindvideo.models.encoders import load_encoder, load_masked_brain
from mindvideo.models.foundation import Foundation
from mindvideo.models.interfaces import Encoder, of_person
from mindvideo.stages import Progress, StageContext, Steps

MAP_WINDOWS = 64
_FINAL_STAGES = ("cotrain", "align")


def load_encoders(run_dir: Path, stores: Sequence[Store]) -> dict[str, Encoder]:
    """The encoder after ``adapt`` (of one scan), ``align`` and ``cotrain``, where they have run.

    ModelError when neither ``align`` nor ``cotrain`` has, or a model was made for other voxels.
    """
    folders = {"align": run_dir / "align" / "model", "cotrain": run_dir / "cotrain" / "fmri_encoder"}
    trained = {stage: load_encoder(folder) for stage, folder in folders.items() if (folder / "config.json").is_file()}
    if not trained:
        raise ModelError(f"expected an encoder of align or cotrain in {run_dir}, found none; run align first")
    encoders: dict[str, Encoder] = {}
    kind = type(next(iter(trained.values())))
    if kind.starts_from_masked_brain and (run_dir / "adapt" / "model" / "config.json").is_file():
        model = load_masked_brain(run_dir / "adapt" / "model")
        encoders["adapt"] = kind.from_masked_brain(model, window=1, condition_length=1, condition_width=1)
    encoders |= trained
    for stage, encoder in encoders.items():
        encoder.require_voxels([store.layout for store in stores], run_dir / stage)
        torch.nn.Module.to(encoder, "cuda" if torch.cuda.is_available() else "cpu")
        encoder.eval()
    return encoders


def make_targets(foundation: Foundation, windows: Windows, index: np.ndarray) -> occlusion.Targets:
    """What conditions should fit: embeddings of captions and middle frames."""
    tokens, pooled = foundation.encode_text([windows.captions[i] for i in index])
    frames = windows.frames(index)
    image = foundation.encode_image(frames[:, frames.shape[1] // 2])
    return occlusion.Targets(*(part.float().cpu().numpy() for part in (pooled, image, tokens)))


def attention_by_layer(encoder: Encoder, fmri: np.ndarray) -> dict[str, np.ndarray]:
    """Voxel maps (V,) of the first, middle and last layer, each summing to 1."""
    tokens = attention.average_attention(encoder, fmri[:, : encoder.config.window])
    voxels = attention.spread_to_voxels(tokens, token_voxels(encoder), encoder.config.num_voxels)
    return {name: voxels[layer] for name, layer in attention.choose_layers(len(voxels)).items()}


def token_voxels(encoder: Encoder) -> list[np.ndarray]:
    """Voxels of each token of an encoder that has some."""
    sources = encoder.token_voxels()
    assert sources is not None
    return sources


def occlusion_map(
    encoder: Encoder, fmri: np.ndarray, targets: occlusion.Targets, steps: Steps
) -> dict[str, np.ndarray]:
    """Drop in alignment per voxel, (V,) by measure, with one token silenced at a time."""
    sources = token_voxels(encoder)
    groups = {str(t): np.unique(voxels) for t, voxels in enumerate(sources)}
    _, drops = occlusion.measure_drops(encoder, fmri, groups, targets, steps)
    return {
        measure: attention.spread_to_voxels(
            np.array([drops[name][measure] for name in groups]), sources, encoder.config.num_voxels
        )
        for measure in occlusion.MEASURES
    }


def temporal_weights(
    encoders: Mapping[str, Encoder], fmri: np.ndarray, store: Store
) -> dict[str, dict[str, dict[str, float]]]:
    """Temporal attention each scan receives, by stage, layer and time after the frames' onset."""
    found = {}
    for stage, encoder in encoders.items():
        between = attention.average_temporal_attention(encoder, fmri[:, : encoder.config.window])
        if between is not None and encoder.config.window > 1:
            weights = between.mean(axis=1)
            times = [f"+{store.lag_s + scan * store.tr_s:g} s" for scan in range(weights.shape[1])]
            layers = attention.choose_layers(len(weights))
            found[stage] = {name: dict(zip(times, weights[at].tolist(), strict=True)) for name, at in layers.items()}
    return found


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)


def _shares(values: np.ndarray, store: Store, areas: Mapping[str, np.ndarray]) -> dict[str, float]:
    if not store.parcels:
        return attention.sum_by_network(values, store.vertex)
    return {name: float(values[voxels].sum() / values.sum()) for name, voxels in areas.items()}


def _describe_parcels(names: Sequence[str]) -> dict[str, Any]:
    """Each parcel's share of all of them, and which have no place on the surface."""
    placed = np.array([np.isfinite(attention.map_parcels(np.ones(1), [name])).any() for name in names])
    lost = [name for name, is_placed in zip(names, placed, strict=True) if not is_placed]
    note = f"no place on the surface is known of {len(lost)} of {len(names)} parcels ({listed(lost)})" if lost else ""
    note += "" if not lost else ", which are left out of the maps" if placed.any() else ", so there is no map"
    return {"parcels": {name: {"voxels": 1, "share": 1 / len(names)} for name in names}, "note": note}


def _network_sizes(vertex: np.ndarray) -> dict[str, dict[str, float]]:
    shares = attention.sum_by_network(np.ones(len(vertex)), vertex)
    counts = np.bincount(yeo17_labels()[vertex], minlength=18)
    return {
        name: {"voxels": int(count), "share": shares[name]}
        for name, count in zip(YEO17_NAMES[1:], counts[1:], strict=True)
    }


def _draw(folder: Path, cortex: Mapping[str, np.ndarray], final: str, steps: Steps) -> None:
    interactive = [name for name in cortex if name.startswith(f"attention_{final}_")][-1:] + ["occlusion_tokens"]
    labels = {"attention": "attention, 1 = uniform", "occlusion": "drop in token correlation a voxel"}
    for name, values in cortex.items():
        kind = name.split("_", 1)[0]
        title = name.replace("_", ", ").replace("occlusion, tokens", "occlusion importance")
        if kind == "attention":
            title += " layer"
        if kind == "attention" or name == "occlusion_tokens":
            draw_flat_map(values, folder / f"flat_{name}.png", title, labels[kind])
            draw_inflated(values, folder / f"inflated_{name}.png", title, labels[kind])
            if name in interactive:
                write_interactive(values, folder / f"surface_{name}.html", title)
            steps.add(part="maps")


def run(context: StageContext) -> None:
    """Write ``RUN/explain``, of each of several people in a folder ``subjectN``.

    - ``attention.json`` {stage: {layer: {network: share}}}, ``networks.json`` {network: {voxels, share}};
    - of parcels ``parcels.json`` {parcels {name: {voxels, share}}, note} instead of networks;
    - ``temporal.json`` {stage: {layer: {time after onset: weight}}};
    - ``occlusion.json`` {stage, n_windows, measures {measure: words}, intact {measure: value},
      areas {area: {n_voxels, measure: drop}}};
    - ``maps.npz``, cortical maps, float32 (59412,), NaN without a voxel, and pictures of them;
    - of a simulated subject ``truth.json``: how well each map finds the true signal.

    An encoder without attention maps has ``occlusion.json`` alone, and voxels without places
    ``temporal.json`` alone.
    """
    recipe, run_dir, folder, progress = context
    stores = open_stores(recipe.data, run_dir)
    encoders = load_encoders(run_dir, stores)
    foundation = Foundation(recipe.foundation)
    for person, place in enumerate(person_folders(recipe.data, folder)):
        theirs = {stage: of_person(encoder, person) for stage, encoder in encoders.items()}
        truth = run_dir / "simulate" / "truth" / f"vertices_subject{recipe.data.people[person]}.npz"
        explain_person(recipe, stores[person], theirs, foundation, truth, place, progress)


def explain_person(
    recipe: Recipe,
    store: Store,
    encoders: dict[str, Encoder],
    foundation: Foundation,
    truth_path: Path,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Maps of one person, see `run`; ``truth_path`` exists for a simulated one."""
    final = next(stage for stage in _FINAL_STAGES if stage in encoders)
    encoder = encoders[final]
    windows = Windows(store, "test", encoder.config.window)
    index = spread_evenly(len(windows), recipe.explain.max_windows)
    fmri = windows.fmri(index)
    if not store.has_areas:
        _write_files(folder, {"temporal": temporal_weights(encoders, fmri, store)})
        return
    areas = occlusion.group_by_area(store.area, store.parcels)
    targets = make_targets(foundation, windows, index)
    sources = encoder.token_voxels()
    layers = {} if sources is None else {stage: attention_by_layer(model, fmri) for stage, model in encoders.items()}
    total = len(areas)
    is_drawn = not store.parcels or bool(np.isfinite(attention.map_parcels(np.ones(len(areas)), list(areas))).any())
    if sources is not None:
        total += (sum(map(len, layers.values())) + 1) * is_drawn + len(sources) * (1 + UNTRAINED * truth_path.is_file())
    steps = Steps(progress, total)
    intact, drops = occlusion.measure_drops(encoder, fmri, areas, targets, steps)
    by_area = {name: {"n_voxels": len(areas[name]), **drops[name]} for name in areas}
    about = {"stage": final, "n_windows": len(index), "measures": occlusion.MEANING}
    files: dict[str, Any] = {"occlusion": about | {"intact": intact, "areas": by_area}}
    if sources is None:
        _write_files(folder, files)
        return
    voxel_maps: dict[str, np.ndarray] = {}
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for stage, by_layer in layers.items():
        voxel_maps |= {f"attention_{stage}_{layer}": values * store.n_voxels for layer, values in by_layer.items()}
        shares[stage] = {layer: _shares(values, store, areas) for layer, values in by_layer.items()}
    few = spread_evenly(len(index), MAP_WINDOWS)
    few_targets = occlusion.Targets(targets.text[few], targets.image[few], targets.tokens[few])
    for measure, values in occlusion_map(encoder, fmri[few], few_targets, steps).items():
        voxel_maps[f"occlusion_{measure}"] = values
    if truth_path.is_file():
        is_informative, signal = read_truth(truth_path, store.vertex)
        untrained: list[Maps] = []
        for number in range(UNTRAINED):
            fresh = untrained_like(encoder, recipe.seed + number)
            drawn = {f"attention_{name}": values for name, values in attention_by_layer(fresh, fmri).items()}
            dropped = occlusion_map(fresh, fmri[few], few_targets, steps)
            untrained.append(drawn | {f"occlusion_{measure}": values for measure, values in dropped.items()})
        rng = np.random.default_rng([recipe.seed, len(index)])
        files["truth"] = compare_with_truth(voxel_maps, untrained, is_informative, signal, sources, rng) | {
            "ablation": ablate_truth(encoder, fmri, targets, is_informative, rng),
            "areas": ablate_areas(drops, areas, is_informative),
        }
    cortex = {
        name: attention.map_parcels(values, list(areas))
        if store.parcels
        else attention.map_to_cortex(values, store.vertex)
        for name, values in voxel_maps.items()
    }
    files |= {"temporal": temporal_weights(encoders, fmri, store), "attention": shares}
    if store.parcels:
        files["parcels"] = _describe_parcels(list(areas))
    else:
        files["networks"] = _network_sizes(store.vertex)
    _write_files(folder, files)
    if is_drawn:
        with beside(folder / "maps.npz") as place, place.open("wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **cortex)
        _draw(folder, cortex, final, steps)
    if "networks" in files:
        expected = {name: size["share"] for name, size in files["networks"].items()}
        draw_networks(shares, expected, folder / "networks.png")
