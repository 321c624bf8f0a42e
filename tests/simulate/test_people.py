"""Simulated people: alike as far as they should be, each with its own share of everything, and the truth of each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import f_oneway, spearmanr

from mindvideo import atlas
from mindvideo.simulate.cortex import warp
from mindvideo.simulate.drives import SHARED
from mindvideo.simulate.film_features import film_features, scene_features
from mindvideo.simulate.scenes import draw_scene, make_film
from mindvideo.simulate.subject import WARP_MM, SimulatedSubject, double_gamma
from mindvideo.simulate.truth import TOLD, describe_vertices, explained_share

AREAS = ("V3B", "V8", "FFC", "PIT", "VMV2", "PHA3", "MT", "MST", "V4t", "A1")


@pytest.fixture(scope="module")
def shared() -> SimulatedSubject:
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in AREAS]))
    return SimulatedSubject.create(np.random.default_rng(4), vertex)


@pytest.fixture(scope="module")
def people(shared: SimulatedSubject) -> list[SimulatedSubject]:
    return [shared.draw_person(np.random.default_rng([4, number])) for number in range(3)]


def test_people_are_alike_but_no_copies(people: list[SimulatedSubject], shared: SimulatedSubject) -> None:
    """Noiseless responses to a film that calibrated nothing; figures of the whole cortex are benchmarks/people.py's."""
    film = film_features(make_film(np.random.default_rng(5), 480.0))
    responses = [person.respond(film, 4 + 2.0 * np.arange(240)) for person in people]
    found: dict[str, float] = {}
    for name in AREAS[:-1]:
        medians = []
        for i, j in itertools.combinations(range(3), 2):
            chosen = (shared.area == name) & people[i].is_informative & people[j].is_informative
            r = [np.corrcoef(responses[i][:, v], responses[j][:, v])[0, 1] for v in np.flatnonzero(chosen)]
            medians.append(np.median(r))
        found[name] = float(np.mean(medians))
    assert min(found.values()) >= 0.3, found
    assert max(found.values()) <= 0.6, found


def test_a_drive_has_its_stated_share_of_the_shared_one(
    people: list[SimulatedSubject], shared: SimulatedSubject
) -> None:
    """On the calibration film, as a plain HRF leaves it, the squared correlation with the drive it was taken from."""
    film, person = shared.calibration, people[0]
    hrf = double_gamma((np.arange(72) + 0.5) / 3, 5.5)
    row = {int(position): number for number, position in enumerate(shared.vertex)}
    assert [drive.kind for drive in person._drives] == list(SHARED)
    for theirs, ours in zip(person._drives, shared._drives, strict=True):
        saturated = theirs(film).astype(float) / (2 * theirs.strength)
        before_saturation = 2 * np.arctanh(saturated.clip(-1 + 1e-6, 1 - 1e-6))
        place = [row[int(position)] for position in person.source[theirs.members]]
        original = ours.raw(film)[:, np.searchsorted(ours.members, place)]
        for v in range(0, len(place), 41):
            slow = [np.convolve(series[:, v], hrf, mode="valid") for series in (before_saturation, original)]
            assert np.corrcoef(*slow)[0, 1] ** 2 == pytest.approx(SHARED[theirs.kind], abs=0.02), theirs.kind


def test_maps_are_shifted_by_millimetres_and_neighbours_alike() -> None:
    vertex = np.sort(np.concatenate([atlas.area_of(name) for name in ("V1", "V2", "V3", "V4", "MT")]))
    sphere = atlas.cortical_coordinates("sphere")
    source = vertex[warp(np.random.default_rng(1), vertex, WARP_MM)]
    shift = sphere[source] - sphere[vertex]
    assert np.sqrt((shift**2).sum(axis=1).mean()) == pytest.approx(WARP_MM, rel=0.2)
    np.testing.assert_array_equal(source < atlas.N_LEFT, vertex < atlas.N_LEFT)
    edges = atlas.adjacency()[vertex][:, vertex].tocoo()
    beside, anywhere = (
        np.linalg.norm(shift[edges.row] - shift[other], axis=1).mean()
        for other in (edges.col, np.random.default_rng(2).permutation(edges.col))
    )
    assert beside < 0.5 * anywhere
    np.testing.assert_array_equal(warp(np.random.default_rng(1), vertex, 0.0), np.arange(len(vertex)))
    other = vertex[warp(np.random.default_rng(3), vertex, WARP_MM)]
    assert (other != source).mean() > 0.5


def test_signal_hrf_and_noise_are_a_persons_own(people: list[SimulatedSubject]) -> None:
    first, second = people[:2]
    for name in ("reliability", "hrf_peak_s", "baseline"):
        both = first.is_informative & second.is_informative
        r = np.corrcoef(getattr(first, name)[both], getattr(second, name)[both])[0, 1]
        assert abs(r) < 0.5, name
    assert first.rhythms_hz != second.rhythms_hz
    typical = [np.median(person.reliability[person.is_informative]) for person in people]
    assert np.ptp(typical) > 0.02
    assert abs(np.corrcoef(first.loadings[-8:].ravel(), second.loadings[-8:].ravel())[0, 1]) < 0.3
    silence = np.zeros((600, len(first.vertex)), np.float32)
    noise = [person.record(silence, 2.0, np.random.default_rng(9 + n)) for n, person in enumerate((first, second))]
    steps = [np.diff(run, axis=0) for run in noise]
    steps = [(step - step.mean(axis=0)) / step.std(axis=0) for step in steps]
    assert abs((steps[0] * steps[1]).mean()) < 0.02


def test_explained_share_is_that_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(["a", "b", "c"], 50)
    response = rng.standard_normal((50, 4)) + (group == "b")[:, None] * np.array([0.0, 0.5, 1.0, 3.0])
    response[:, 0] = 1.5
    found = explained_share(response, group)
    assert found[0] == 0
    for column in (1, 2, 3):
        f = f_oneway(*(response[group == name, column] for name in "abc")).statistic
        share = 2 * f / (2 * f + 47)
        assert found[column] == pytest.approx(1 - (1 - share) * 49 / 47, abs=1e-5)


def test_truth_tells_vertices_of_one_area_apart(people: list[SimulatedSubject], shared: SimulatedSubject) -> None:
    """Shares found on other scenes rank the vertices of an area alike, and areas carry what they are tuned to."""
    person = people[0]
    truth = describe_vertices(person, noise=0.7)
    assert {len(truth[name]) for name in ("vertex", "source", "own_area", "drive", "looks_at")} == {len(person.vertex)}
    odds = truth["signal_to_noise"] ** 2 * 0.7**2
    np.testing.assert_allclose(odds / (1 + odds), person.reliability, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(truth["looks_at"][:, 0]), ~person.is_informative)
    share = {name: truth["attribute_share"][:, column] for column, name in enumerate(TOLD)}
    assert truth["attribute_share"].shape == (len(person.vertex), 8)
    for area, most, less in (("MT", "motion", "thing"), ("FFC", "thing", "light"), ("PHA3", "place", "thing")):
        members = person.area == area
        assert share[most][members].mean() > share[less][members].mean() + 0.05, area
    assert not np.any(truth["attribute_share"][~person.is_informative])
    rng = np.random.default_rng(6)
    scenes = [draw_scene(rng, None) for _ in range(300)]
    again = np.zeros(len(person.vertex))
    response = person.neural(scene_features(scenes))
    again[person.is_informative] = explained_share(response, np.array([scene.thing for scene in scenes]))
    ffc = person.area == "FFC"
    assert spearmanr(share["thing"][ffc], again[ffc]).statistic > 0.7
    assert np.ptp(share["thing"][ffc]) > 0.2
    elsewhere = describe_vertices(people[1], noise=0.7)
    both = ffc & (people[1].area == "FFC")
    assert spearmanr(share["thing"][both], elsewhere["attribute_share"][both, TOLD.index("thing")]).statistic < 0.7
    moved = person.source != person.vertex
    assert (truth["own_area"] != truth["area"])[moved].any() and not (truth["own_area"] != truth["area"])[~moved].any()
