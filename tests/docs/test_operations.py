"""The page on what a study takes prints what is counted, and what is counted agrees with a count by hand."""

from __future__ import annotations

import sys

import pytest
from pages import ROOT

from mindvideo.sizing import HCP_VOXELS

sys.path.append(str(ROOT / "benchmarks"))
import operations


def by_hand(tokens: int, width: int, layers: int, ratio: int) -> int:
    """Operations of one pass of a transformer: projections of queries, keys, values and result, MLP, attention."""
    products = tokens * (4 + 2 * ratio) * width**2 + 2 * tokens**2 * width
    return 2 * layers * products


def test_masked_model_and_clip_by_hand() -> None:
    """Patches of 16; a quarter kept, and the class token; 24 blocks of 1,024 and 8 of 512; backward is twice forward."""
    patches = -(-HCP_VOXELS // 16)
    kept = patches // 4 + 1
    ends = 2 * (kept * 1024 * 512 + 16 * patches * (1024 + 512))
    once = by_hand(kept, 1024, 24, 1) + by_hand(patches + 1, 512, 8, 1) + ends
    assert operations.of_masked_model(HCP_VOXELS) == pytest.approx(3 * once, rel=0.02)
    clip = operations.of_clip()
    assert clip["image"] == pytest.approx(by_hand(16 * 16 + 1, 1024, 24, 4), rel=0.01)
    assert clip["text"] == pytest.approx(by_hand(77, 768, 12, 4), rel=0.01)


def test_the_pages_table_is_the_one_that_is_counted() -> None:
    assert "\n".join(operations.table(10)) in (ROOT / "docs" / "scale.md").read_text()
