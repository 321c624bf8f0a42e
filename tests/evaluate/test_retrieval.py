"""Retrieval, similarity and consistency against loops, and flow against known motion."""

import cv2
import numpy as np
import pytest

from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.motion import direction_agreement, end_point_error, optical_flow
from mindvideo.evaluate.retrieval import (
    adjacent_consistency,
    feature_similarity,
    gated_consistency,
    pairwise_retrieval,
    pairwise_similarity,
    retrieval_top_k,
    video_similarity,
)


def test_retrieval_equals_drawing_candidates():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(9, 9)).round(1) + np.eye(9)
    for n_candidates, top_k in [(2, 1), (5, 1), (5, 2), (9, 5)]:
        drawn = np.zeros(9)
        draws = 3000
        for i in range(9):
            others = np.delete(similarity[i], i)
            for _ in range(draws):
                ahead = (rng.choice(others, n_candidates - 1, replace=False) >= similarity[i, i]).sum()
                drawn[i] += ahead < top_k
        exact = retrieval_top_k(similarity, n_candidates, top_k)
        error = np.sqrt(exact * (1 - exact) / draws)
        assert (np.abs(drawn / draws - exact) <= 4 * error + 1e-9).all()


def test_retrieval_among_all_is_the_rank_of_the_truth_and_ties_count_against_it():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.9, 0.8, 0.7]])
    assert retrieval_top_k(similarity).tolist() == [1.0, 0.0, 0.0]
    assert retrieval_top_k(similarity, top_k=2).tolist() == [1.0, 1.0, 0.0]
    pairs = pairwise_retrieval(similarity)
    assert pairs.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert (np.diag(pairwise_retrieval(similarity, 2)) == retrieval_top_k(similarity, top_k=2)).all()
    with pytest.raises(SettingError):
        retrieval_top_k(similarity, 4)


def test_similarity_and_consistency_are_cosines():
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=(2, 4, 3, 6))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert feature_similarity(p, t)[2, 1] == pytest.approx(cosine(p[2, 1], t[2, 1]))
    assert pairwise_similarity(p, t)[3, 0] == pytest.approx(np.mean([cosine(p[3, f], t[0, f]) for f in range(3)]))
    assert adjacent_consistency(p)[1] == pytest.approx((cosine(p[1, 0], p[1, 1]) + cosine(p[1, 1], p[1, 2])) / 2)
    assert adjacent_consistency(np.repeat(p[:, :1], 3, axis=1)) == pytest.approx(np.ones(4))
    assert np.isnan(adjacent_consistency(p[:, :1])).all()
    with pytest.raises(DataError, match="non-zero"):
        feature_similarity(np.zeros_like(p), t)


def moving_clip(dx, dy, n_frames=4, size=(50, 60)):
    """A smooth random texture that moves by (dx, dy) pixels a frame."""
    texture = np.random.default_rng(4).integers(0, 256, (30, 35, 3)).astype(np.uint8)
    texture = cv2.resize(texture, (140, 120), interpolation=cv2.INTER_CUBIC)
    rows, columns = 30, 40
    shots = [texture[rows - f * dy :, columns - f * dx :][: size[0], : size[1]] for f in range(n_frames)]
    return np.stack(shots)[None]


def test_flow_finds_known_motion():
    right, down, still = moving_clip(2, 0), moving_clip(0, 2), moving_clip(0, 0)
    flow_right, flow_down, flow_still = (optical_flow(clip) for clip in (right, down, still))
    assert flow_right.shape == (1, 3, 50, 60, 2)
    np.testing.assert_allclose(np.median(flow_right, axis=(0, 1, 2, 3)), [2, 0], atol=0.1)
    assert direction_agreement(flow_right, flow_right)[0] == pytest.approx(1.0, abs=1e-5)
    assert abs(direction_agreement(flow_down, flow_right)[0]) < 0.2
    assert direction_agreement(optical_flow(moving_clip(-2, 0)), flow_right)[0] < -0.8
    assert direction_agreement(flow_still, flow_right)[0] == pytest.approx(0.0, abs=0.05)
    assert np.isnan(direction_agreement(flow_right, flow_still)[0])
    assert end_point_error(flow_right, flow_right)[0] == 0.0
    assert end_point_error(flow_still, flow_right)[0] == pytest.approx(2.0, abs=0.2)
    assert end_point_error(flow_down, flow_right)[0] == pytest.approx(np.sqrt(8), abs=0.4)


def test_end_point_error_and_direction_equal_loops():
    rng = np.random.default_rng(6)
    p, t = rng.normal(size=(2, 2, 3, 4, 5, 2)).astype(np.float32)
    p[0, 0, 0, 0] = 0
    error = np.mean([np.hypot(*(p[1][i] - t[1][i])) for i in np.ndindex(3, 4, 5)])
    assert end_point_error(p, t)[1] == pytest.approx(error, rel=1e-5)
    above = below = 0.0
    for i in np.ndindex(3, 4, 5):
        speed = np.hypot(*t[0][i])
        length = np.hypot(*p[0][i])
        above += (p[0][i] @ t[0][i]) / length if length else 0.0
        below += speed
    assert direction_agreement(p, t)[0] == pytest.approx(above / below, rel=1e-5)


def test_flow_refuses_single_frames():
    with pytest.raises(DataError, match="two or more frames"):
        optical_flow(moving_clip(1, 0)[:, :1])


def test_farneback_flow_is_opencvs_with_the_published_settings():
    clip = moving_clip(1, 1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip[0]]
    expected = cv2.calcOpticalFlowFarneback(grey[1], grey[2], None, 0.5, 3, 15, 3, 5, 1.2, 0)
    found = optical_flow(clip, "farneback")
    np.testing.assert_allclose(found[0, 1], expected, atol=1e-5)
    np.testing.assert_allclose(np.median(found, axis=(0, 1, 2, 3)), [1, 1], atol=0.15)


def test_gate_and_video_similarity():
    rng = np.random.default_rng(6)
    features = rng.normal(size=(3, 4, 5))
    free = adjacent_consistency(features)
    assert gated_consistency(features, np.array([0.7, 0.6, -0.1])).tolist() == [free[0], 0.0, 0.0]
    p, t = rng.normal(size=(2, 6)), rng.normal(size=(3, 6))
    found = video_similarity(p, t)
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(p[1] @ t[2] / np.linalg.norm(p[1]) / np.linalg.norm(t[2]))


def test_retrieval_among_fewer_of_every_pair():
    similarity = np.random.default_rng(7).normal(size=(8, 8))
    pairs = pairwise_retrieval(similarity, 1, 3)
    np.testing.assert_allclose(np.diag(pairs), retrieval_top_k(similarity, 3, 1), atol=1e-7)
    swapped = similarity[:, [1, 0, *range(2, 8)]]
    assert pairs[0, 1] == pytest.approx(retrieval_top_k(swapped, 3, 1)[0])
