from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny_pipeline import VOXELS, WINDOW

from mindvideo.data.cifti import write_cortex
from mindvideo.data.store import identify_voxels
from mindvideo.errors import DataError, ModelError, SettingError
from mindvideo.generate.clips import window_noise
from mindvideo.generate.film import Film, FilmSettings, check_recorded, frames_per_scan, write_film
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.recording import Recorded, read_recorded, read_scans
from mindvideo.generate.scheduler import make_scheduler

VERTEX = np.random.default_rng(0).permutation(5 * np.arange(VOXELS) + 101)  # in no ascending order, as in a store


def scans(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, VOXELS)).astype(np.float32)


def whole_film(pipe: MindVideoPipeline, fmri: np.ndarray, per_scan: int, steps: int, seed: int) -> torch.Tensor:
    """DDIM over all frames at once, every two half-scan blocks a clip, written out: latents (frames, c, h, w)."""
    half = (per_scan + 1) // 2
    n_blocks = -(-len(fmri) * per_scan // half)
    shape = pipe.latent_shape(half)
    x = torch.cat([window_noise(seed, block, shape) for block in range(n_blocks)], dim=1)  # (c, frames, h, w)
    windows = np.stack([fmri[np.minimum(np.arange(t, t + WINDOW), len(fmri) - 1)] for t in range(len(fmri))])
    tokens = pipe.encode(windows)
    unwanted = pipe.encode(pipe.train_mean[None])
    alpha = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for step in reversed(range(steps)):
        t = step * (1000 // steps) + 1
        total, weight = torch.zeros_like(x), torch.zeros(x.shape[1])
        for clip in range(n_blocks - 1):
            moment = clip * half / per_scan
            low, high = min(int(moment), len(fmri) - 1), min(int(moment) + 1, len(fmri) - 1)
            condition = tokens[low] + (moment - int(moment)) * (tokens[high] - tokens[low])
            part = slice(clip * half, (clip + 2) * half)
            with torch.no_grad():
                noise, other = (pipe.unet(x[None, :, part], t, c[None]).sample[0] for c in (condition, unwanted[0]))
            for j in range(2 * half):
                share = min(j + 0.5, 2 * half - j - 0.5) / half
                total[:, clip * half + j] += share * (other + 2.5 * (noise - other))[:, j]
                weight[clip * half + j] += share
        epsilon = total / weight[:, None, None]
        a, before = alpha[t], alpha[t - 1000 // steps] if t >= 1000 // steps else alpha[0]
        x = before**0.5 * (x - (1 - a) ** 0.5 * epsilon) / a**0.5 + (1 - before) ** 0.5 * epsilon
    return x.transpose(0, 1)


@pytest.mark.parametrize(("n", "per_scan"), [(5, 4), (4, 3), (1, 1)])
def test_the_wave_gives_the_film_that_denoising_it_whole_gives(
    pipeline: MindVideoPipeline, n: int, per_scan: int
) -> None:
    film = Film(pipeline, scans(n), FilmSettings(per_scan, steps=3, seed=7, batch_size=3))
    found = torch.cat([block.transpose(0, 1) for block in film.latents()])
    if n * per_scan > 1:
        torch.testing.assert_close(found, whole_film(pipeline, scans(n), per_scan, 3, 7), atol=2e-5, rtol=1e-4)
    assert len(list(film)) == film.n_frames == n * per_scan


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_samplers_with_a_memory_do_not_mix_blocks(pipeline: MindVideoPipeline, name: str) -> None:
    """With one condition for all scans and a UNet that sees no neighbours, each block is sampled as if alone."""
    pipeline.scheduler = make_scheduler({}, name)

    class Output:
        def __init__(self, sample):
            self.sample = sample

    pipeline.unet.forward = lambda z, t, c: Output(0.3 * z + 1e-4 * t.view(-1, 1, 1, 1, 1))
    film = Film(pipeline, np.zeros((4, VOXELS), np.float32), FilmSettings(4, steps=4, negative="none", batch_size=2))
    found = list(film.latents())
    assert len(found) == 8
    for block, latents in enumerate(found):
        scheduler = make_scheduler({}, name)
        scheduler.set_timesteps(4)
        x = window_noise(0, block, latents.shape)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x + 1e-4 * t, t, x).prev_sample
        torch.testing.assert_close(latents, x, atol=1e-5, rtol=1e-4)


def changes(frames: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3))


def test_joins_are_no_rougher_than_what_lies_between(pipeline: MindVideoPipeline) -> None:
    """A UNet that paints its condition: frames then show the condition, and a hard cut would show at each scan."""

    class Output:
        def __init__(self, sample):
            self.sample = sample

    def paint(z, t, condition):
        alpha = pipeline.scheduler.alphas_cumprod[t.long()].view(-1, 1, 1, 1, 1)
        wanted = 3 * condition.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        return Output((z - alpha.sqrt() * wanted) / (1 - alpha).sqrt())

    pipeline.unet.forward = paint
    fmri, per_scan = scans(24, seed=3), 6
    film = Film(pipeline, fmri, FilmSettings(per_scan, steps=4, negative="none"))
    values = torch.cat([block.mean(dim=(0, 2, 3)) for block in film.latents()]).numpy()
    steps = np.abs(np.diff(values))
    is_join = np.arange(1, len(values)) % per_scan == 0
    assert np.median(steps[is_join]) <= 1.1 * np.median(steps[~is_join])
    assert steps[is_join].max() <= steps[~is_join].max()
    alone = Film(pipeline, fmri[:1], FilmSettings(per_scan, steps=4, negative="none"))
    assert (
        np.ptp(torch.cat([block.mean(dim=(0, 2, 3)) for block in alone.latents()]).numpy()) < 0.2 * steps[is_join].max()
    )


def test_memory_does_not_grow_with_the_recording(pipeline: MindVideoPipeline) -> None:
    alive = {}
    for n in (8, 16):
        film = Film(pipeline, scans(n), FilmSettings(2, steps=3, negative="none"))
        for _ in film.latents():
            pass
        alive[n] = film.most_alive
        assert not film._blocks and not film._conditions and len(film._encoded) <= 2
    assert alive[8] == alive[16] <= 2 * 3 + 2


def test_a_film_is_written_at_the_asked_rate_and_size(pipeline: MindVideoPipeline, tmp_path: Path) -> None:
    film = Film(pipeline, scans(3), FilmSettings(frames_per_scan(2.0, 5, None, 6), size=16, steps=2, seed=1))
    write_film(film, tmp_path / "new" / "film.mp4", 2.0)
    with av.open(str(tmp_path / "new" / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (16, 16, 5.0)
        assert sum(1 for _ in container.decode(video=0)) == 30


def test_rates_counts_and_what_contradicts() -> None:
    assert frames_per_scan(2.0, None, None, 6) == 6
    assert frames_per_scan(2.0, 30, None, 6) == 60
    assert frames_per_scan(1.5, None, 7, 6) == 7
    with pytest.raises(SettingError, match=r"whole number of frames in a scan of 1\.5 s, found 4\.5"):
        frames_per_scan(1.5, 3, None, 6)
    with pytest.raises(SettingError, match="expected --num-frames 60"):
        frames_per_scan(2.0, 30, 6, 6)


def recorded(**changes) -> Recorded:
    vertex = tuple(int(v) for v in VERTEX)
    return Recorded(**({"vertex": vertex, "voxel_id": identify_voxels(VERTEX), "tr_s": 2.0, "lag_s": 4.0} | changes))  # fmt: skip


def test_a_recording_is_read_at_the_models_voxels_with_its_own_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vertex = np.sort(np.concatenate([VERTEX, [3, 40_000, 50_001]]))
    runs = [(100 + 5 * rng.normal(size=(31, len(vertex)))).astype(np.float32) for _ in range(2)]
    for number, data in enumerate(runs):
        write_cortex(tmp_path / f"{number}.dtseries.nii", data, vertex, 2.0)
    paths = [tmp_path / "0.dtseries.nii", tmp_path / "1.dtseries.nii"]
    found = read_scans(paths, recorded(), first_volume=2, n_scans=25)
    expected = []
    for data in runs:
        part = data[2:27, np.searchsorted(vertex, VERTEX)].astype(float)
        time = np.arange(25.0)
        fit = np.stack([np.polyval(np.polyfit(time, column, 4), time) for column in part.T], axis=1)
        expected.append((part - fit) / (part - fit).std(axis=0, ddof=1))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-4)
    assert read_scans(paths[:1], recorded()).shape == (31, VOXELS)
    for message, change, arguments in (
        ("expected a TR of 1 s", {"tr_s": 1.0}, {}),
        ("found 1 of them missing", {"vertex": (7, *recorded().vertex[1:])}, {}),
        ("expected volumes 9 to 39", {}, {"first_volume": 9, "n_scans": 31}),
        ("without positions", {"vertex": (-1, -2)}, {}),
    ):
        with pytest.raises(DataError, match=message):
            read_scans(paths, recorded(**change), **arguments)


def test_a_model_without_its_voxels_is_refused(pipeline: MindVideoPipeline, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"recording\.json in .*, found none"):
        read_recorded(tmp_path)
    (tmp_path / "recording.json").write_text(json.dumps({"vertex": [1, 2]}))
    with pytest.raises(ModelError, match="found other content"):
        read_recorded(tmp_path)
    check_recorded(pipeline, recorded())
    with pytest.raises(ModelError, match=f"found a selection of {VOXELS - 1}"):
        check_recorded(pipeline, recorded(vertex=recorded().vertex[1:]))
    with pytest.raises(ModelError, match=r"expected scans of shape \(n, 37\)"):
        Film(pipeline, np.zeros((3, 5), np.float32), FilmSettings(2))
    with pytest.raises(SettingError, match="found test_mean"):
        Film(pipeline, scans(3), FilmSettings(2, negative="test_mean"))
