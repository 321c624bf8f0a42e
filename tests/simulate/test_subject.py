"""The forward model of the simulated brain against plain computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate

from mindvideo import atlas
from mindvideo.simulate.cortex import Sheet, retinotopy
from mindvideo.simulate.film_features import (
    ATTRIBUTES,
    BLOCKS,
    GRIDS,
    N_FEATURES,
    SEMANTIC,
    cell_centres,
    contrast_energy,
    film_features,
    image_features,
    scene_attributes,
)
from mindvideo.simulate.noise import autoregress, draw_drift, draw_noise, network_loadings
from mindvideo.simulate.scenes import Shot, draw_scene, make_film
from mindvideo.simulate.subject import SimulatedSubject, double_gamma
from mindvideo.simulate.tuning import AREA_TUNING, conjunction_units, embed_attributes

AREAS = ("V1", "MT", "FFC", "VMV2", "V8", "A1")


@pytest.fixture(scope="module")
def film() -> list[Shot]:
    return make_film(np.random.default_rng(2), 60.0)


@pytest.fixture(scope="module")
def features(film: list[Shot]) -> np.ndarray:
    return film_features(film)


@pytest.fixture(scope="module")
def subject(features: np.ndarray) -> SimulatedSubject:
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in AREAS]))
    return SimulatedSubject.create(np.random.default_rng(4), vertex, features)


def _bars(angle: float, wavelength: float) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return (0.5 + 0.5 * np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength)).astype(np.float32)


@pytest.mark.parametrize("number", range(4))
def test_orientation_energy_prefers_its_orientation(number: int) -> None:
    gratings = np.stack([_bars(np.pi * number / 4, 10.0)])
    energy = contrast_energy(gratings, 10.0, 16).reshape(4, -1).mean(axis=1)
    assert energy.argmax() == number
    other = np.delete(energy, number)
    assert energy[number] > 2 * other.max()


def test_contrast_energy_of_the_preferred_grating_is_half_its_amplitude() -> None:
    """A one-sided filter with gain 1 at the grating's frequency leaves exp(ik x) times half the amplitude."""
    energy = contrast_energy(_bars(0.0, 10.0)[None], 10.0, 16).reshape(4, 16, 16)
    np.testing.assert_allclose(energy[0, 6:10, 6:10], 0.25, rtol=0.05)


def test_contrast_energy_stays_where_the_contrast_is() -> None:
    image = np.full((1, 64, 64), 0.5, np.float32)
    image[0, 40:56, 8:24] = _bars(0.0, 5.0)[40:56, 8:24]
    energy = contrast_energy(image, 5.0, 16).reshape(4, 16, 16).sum(axis=0)
    row, column = np.unravel_index(energy.argmax(), energy.shape)
    assert 10 <= row < 14 and 2 <= column < 6
    assert energy[:6].max() < 0.1 * energy.max()


@pytest.mark.parametrize(("dx", "dy", "direction"), [(1, 0, 0), (0, -1, 2), (-1, 0, 4), (0, 1, 6)])
def test_flow_follows_a_moving_square(dx: int, dy: int, direction: int) -> None:
    first, second = np.zeros((2, 1, 64, 64, 3), np.uint8)
    first[0, 20:44, 20:44] = 255
    second[0, 20 + dy : 44 + dy, 20 + dx : 44 + dx] = 255
    flow = image_features(first, second)[0, BLOCKS["flow"]].reshape(GRIDS["flow"][0], -1).sum(axis=1)
    assert flow[:8].argmax() == direction
    assert flow[direction] > 5 * flow[(direction + 4) % 8]


def test_opponent_channels_of_plain_colours() -> None:
    colours = np.zeros((3, 64, 64, 3), np.uint8)
    colours[0, ..., 0] = 255
    colours[1, ..., 1] = 255
    colours[2, ..., 2] = 255
    blocks = image_features(colours, colours)[:, BLOCKS["opponent"]].reshape(3, 12, 64).mean(axis=2)
    red_green = [[1, 0], [0, 1], [0, 0]]
    blue_yellow = [[0, 0.5], [0, 0.5], [1, 0]]
    np.testing.assert_allclose(blocks[:, :2], red_green, atol=1e-5)
    np.testing.assert_allclose(blocks[:, 4:6], blue_yellow, atol=1e-5)
    np.testing.assert_allclose(blocks[:, [2, 3, 6, 7, 10, 11]], 0, atol=1e-5)


def test_cells_run_from_the_top_left() -> None:
    centres = cell_centres(8)
    np.testing.assert_allclose(centres[[0, 7, 63]], [[-0.875, 0.875], [0.875, 0.875], [0.875, -0.875]])


def test_attributes_are_those_of_the_scene_on_screen(film: list[Shot], features: np.ndarray) -> None:
    assert features.shape == (180, N_FEATURES) and features.dtype == np.float32
    for row in (0, 77, 179):
        t = (row + 0.5) / 3
        scene = next(shot.scene for shot in film if shot.start_s <= t < shot.end_s)
        for name in ("thing", "colour", "place", "motion", "camera", "light", "size", "speed"):
            assert ATTRIBUTES[name][features[row, BLOCKS[name]].argmax()] == getattr(scene, name)
            assert features[row, BLOCKS[name]].sum() == 1
        assert features[row, BLOCKS["other_thing"]].sum() == (scene.other is not None)


def test_double_gamma_peaks_where_it_says() -> None:
    t = np.linspace(-3, 40, 43_001)
    for peak in (4.5, 5.7, 6.5):
        h = double_gamma(t, peak)
        assert t[h.argmax()] == pytest.approx(peak, abs=0.1)
        assert h[t < 0].max() == 0 == h[t < 0].min()
        assert h.min() == pytest.approx(-1 / 6, abs=0.02)
        assert t[h.argmin()] == pytest.approx(peak + 10, abs=1)


def test_haemodynamics_is_a_convolution_with_each_vertex_its_own_kernel(subject: SimulatedSubject) -> None:
    n_informative = int(subject.is_informative.sum())
    neural = np.zeros((90, n_informative), np.float32)
    neural[12:27] = 1.0
    times = np.array([6.0, 9.5, 17.0])
    bold = subject._haemodynamics(neural, times)
    for column in (0, n_informative // 2, n_informative - 1):
        peak = float(subject.hrf_peak_s[subject.is_informative][column])
        exact = [integrate.quad(lambda s, t=t, p=peak: double_gamma(t - s, p), 4.0, 9.0)[0] for t in times]
        np.testing.assert_allclose(bold[:, column], exact, rtol=0.01, atol=0.01)


def test_left_hemisphere_sees_the_right_half_and_v1_lower_bank_the_upper_field() -> None:
    position, eccentricity = retinotopy()
    left, right = atlas.area_of("L_V1"), atlas.area_of("R_V1")
    assert position[left, 0].min() > 0 > position[right, 0].max()
    _, forward, height = atlas.cortical_coordinates("midthickness")[left].T
    assert np.corrcoef(forward, eccentricity[left])[0, 1] > 0.9
    height = height - np.polyval(np.polyfit(forward, height, 1), forward)
    assert np.corrcoef(height, position[left, 1])[0, 1] < -0.4
    assert np.isnan(position[atlas.area_of("A1")]).all()


def test_v1_vertices_answer_to_their_own_place(subject: SimulatedSubject) -> None:
    """The place whose contrast drives a vertex most is where the map says it looks."""
    drive = next(one for one in subject._drives if one.kind == "contrast")
    v1 = subject.area[drive.members] == "V1"
    fine = drive.weights[: BLOCKS["fine"].stop - BLOCKS["fine"].start, v1].reshape(4, 256, -1).sum(axis=0)
    best = cell_centres(16)[fine.argmax(axis=0)]
    looks = retinotopy()[0][subject.vertex[drive.members[v1]]]
    assert np.abs(best - looks).max() <= 1 / 16 + 1e-6


def test_smooth_noise_keeps_variance_and_correlates_neighbours() -> None:
    vertex = atlas.area_of("V2")
    sheet = Sheet(vertex)
    white = np.random.default_rng(0).standard_normal((len(vertex), 700), dtype=np.float32)
    noise = sheet.smooth_noise(white)
    np.testing.assert_allclose(noise.var(axis=1).mean(), 1, atol=0.02)
    edges = atlas.adjacency()[vertex][:, vertex].tocoo()
    r = (noise[edges.row] * noise[edges.col]).mean(axis=1)
    assert 0.6 < np.median(r) < 0.95
    far = (noise[0] * noise[-1]).mean()
    assert abs(far) < 0.15


def test_autoregressive_noise_has_the_stated_correlation() -> None:
    white = np.random.default_rng(1).standard_normal((400, 300), dtype=np.float32)
    noise = autoregress(white, 2.0, 2.2)
    assert noise.var() == pytest.approx(1, abs=0.03)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(np.exp(-2 / 2.2), abs=0.02)
    loop = white[:, :1].copy()
    for t in range(1, len(loop)):
        loop[t] = np.exp(-2 / 2.2) * loop[t - 1] + np.sqrt(1 - np.exp(-4 / 2.2)) * white[t, :1]
    np.testing.assert_allclose(noise[:, :1], loop, atol=1e-4)


def test_noise_of_a_run_has_unit_variance_and_drift_is_a_low_polynomial() -> None:
    vertex = atlas.area_of("V3")
    sheet, rng = Sheet(vertex), np.random.default_rng(6)
    noise = draw_noise(sheet, network_loadings(sheet, vertex, rng), 500, 2.0, rng)
    assert noise.shape == (500, len(vertex)) and noise.dtype == np.float32
    assert noise.var() == pytest.approx(1, abs=0.12)
    drift = draw_drift(sheet, 120, rng)
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, 120), 4)
    rest = drift - basis @ np.linalg.lstsq(basis, drift, rcond=None)[0]
    assert rest.var() < 0.003 * drift.var()


def test_units_are_conjunctions_not_indicators() -> None:
    table = embed_attributes(np.random.default_rng(0))
    weights, threshold = conjunction_units(np.random.default_rng(1), table, "object")
    scene = draw_scene(np.random.default_rng(9))
    changed = replace(scene, colour=next(c for c in ATTRIBUTES["colour"] if c != scene.colour))
    other = next(t for t in ATTRIBUTES["thing"] if t != scene.thing)

    def units(one: object) -> np.ndarray:
        return np.maximum(scene_attributes(one) @ weights - threshold, 0)  # type: ignore[arg-type]

    effect = units(changed) - units(scene)
    effect_on_other = units(replace(changed, thing=other)) - units(replace(scene, thing=other))
    assert np.abs(effect - effect_on_other).mean() > 0.4 * np.abs(effect).mean()
    assert ((units(scene) > 0).mean() < 0.8) and ((units(scene) > 0).mean() > 0.1)


def test_things_of_one_group_are_embedded_closer() -> None:
    tables = np.stack([embed_attributes(np.random.default_rng(seed)) for seed in range(40)])
    start = BLOCKS["thing"].start - SEMANTIC.start
    dog, cat, car = (tables[:, start + ATTRIBUTES["thing"].index(name)] for name in ("dog", "cat", "car"))
    within, across = np.linalg.norm(dog - cat, axis=1).mean(), np.linalg.norm(dog - car, axis=1).mean()
    assert within < 0.8 * across


def test_response_has_unit_variance_and_is_zero_elsewhere(subject: SimulatedSubject, features: np.ndarray) -> None:
    response = subject.respond(features, 10 + 1.0 * np.arange(50))
    assert response.shape == (50, len(subject.vertex)) and response.dtype == np.float32
    assert not response[:, ~subject.is_informative].any()
    np.testing.assert_allclose(response[:, subject.is_informative].std(axis=0), 1, atol=0.02)
    assert set(subject.area[~subject.is_informative]) == {"A1"}
    assert (subject.kind[subject.area == "MT"] == "motion").mean() > 0.9
    assert (subject.kind[subject.area == "FFC"] == "object").all()
    assert (subject.kind[subject.area == "VMV2"] == "place").mean() > 0.7


def test_response_before_the_film_is_settled_and_after_it_returns(
    subject: SimulatedSubject, features: np.ndarray
) -> None:
    response = subject.respond(features, np.array([-1.0, 0.0, 60.0, 110.0, 120.0]))
    informative = subject.is_informative
    np.testing.assert_allclose(response[0, informative], response[1, informative], atol=0.05)
    np.testing.assert_allclose(response[3, informative], response[4, informative], atol=0.05)


def test_people_and_animals_drive_the_fusiform_area(subject: SimulatedSubject) -> None:
    rng = np.random.default_rng(8)
    drive = next(one for one in subject._drives if one.kind == "object")
    ffc = subject.area[drive.members] == "FFC"
    scenes = [draw_scene(rng) for _ in range(300)]
    rows = np.zeros((300, N_FEATURES), np.float32)
    rows[:, SEMANTIC] = [scene_attributes(scene) for scene in scenes]
    mean = drive(rows)[:, ffc].mean(axis=1)
    things = np.array([scene.thing for scene in scenes])
    assert (
        mean[np.isin(things, ["person", "dog", "cat"])].mean()
        > mean[np.isin(things, ["car", "ball", "boat"])].mean() + 0.3
    )


def test_runs_share_the_response_and_nothing_else(subject: SimulatedSubject) -> None:
    rng = np.random.default_rng(3)
    n = len(subject.vertex)
    response = rng.standard_normal((400, n)).astype(np.float32) * subject.is_informative
    first, second = (subject.record(response, 2.0, np.random.default_rng(seed)) for seed in (10, 11))
    again = subject.record(response, 2.0, np.random.default_rng(10))
    np.testing.assert_array_equal(first, again)
    basis = np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, 400), 4))[0]
    z = []
    for run in (first / subject.baseline, second / subject.baseline):
        rest = run - basis @ (basis.T @ run)
        z.append(rest / rest.std(axis=0))
    r = (z[0] * z[1]).mean(axis=0)
    informative = subject.is_informative
    assert np.median(r[informative]) == pytest.approx(np.median(subject.reliability[informative]), abs=0.04)
    assert abs(np.median(r[~informative])) < 0.1
    quiet = subject.record(response, 2.0, np.random.default_rng(10), noise=0.25)
    assert np.isfinite(quiet).all() and 5000 < quiet.mean() < 15000


def test_same_rng_same_person_another_rng_another(features: np.ndarray) -> None:
    vertex = np.sort(np.concatenate([atlas.area_of("V8"), atlas.area_of("MT")]))
    times = np.arange(5.0, 30.0, 2.0)
    one, same, other = (
        SimulatedSubject.create(np.random.default_rng(seed), vertex, features).respond(features, times)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).mean() > 0.3


def test_every_visual_area_is_tuned() -> None:
    assert set(atlas.HIERARCHY) <= set(AREA_TUNING)
    for area in AREA_TUNING.values():
        assert 0 < area.reliability < 1 and area.drives
