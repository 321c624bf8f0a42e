"""Keys: the same parts give the same digest, and what differs is said as a reader would."""

from __future__ import annotations

import hashlib
import json

from mindvideo.classes import digest_source
from mindvideo.keys import Key, as_digest


class Example:
    """A class of a user's own."""


def test_the_digest_is_that_of_the_sorted_flat_parts() -> None:
    key = Key({"b": {"y": 2, "x": [1, 2.5]}, "a": None, "e": {}})
    assert key.parts == {"b.y": 2, "b.x": [1, 2.5], "a": None, "e": {}}
    text = '{"a": null, "b.x": [1, 2.5], "b.y": 2, "e": {}}'
    assert key.digest == hashlib.sha256(text.encode()).hexdigest()
    assert Key({"a": None, "e": {}, "b": {"x": [1, 2.5], "y": 2}}).digest == key.digest
    assert Key({**key.parts, "a": 0}).digest != key.digest


def test_differences_name_old_and_new() -> None:
    older = Key({"align": {"lr": 2e-5, "steps": 300, "head": "linear"}, "seed": 1, "file a.nii": as_digest(3, 4)})
    newer = Key({"align": {"lr": 1e-4, "steps": 300, "head": "low_rank", "mixup": 0.05}, "seed": 1,
                 "file a.nii": as_digest(3, 5), "stage adapt": as_digest("x")})  # fmt: skip
    kept = json.loads(json.dumps(older.parts))  # as done.json gives it back
    assert newer.differences(kept) == [
        "align.lr 2e-5 → 1e-4",
        "align.head linear → low_rank",
        "file a.nii changed",
        "align.mixup (not set) → 0.05",
        "stage adapt is new",
    ]
    assert {"align.mixup 0.05 → (not set)", "stage adapt is gone"} < set(older.differences(newer.parts))
    assert newer.differences(newer.parts) == []


def test_values_are_shown_briefly() -> None:
    older, newer = {"a": 0.25, "b": [0.0, 1.0], "c": True, "d": "x" * 60, "e": 1234567.0}, dict.fromkeys("abcde")
    assert [line.partition(" →")[0] for line in Key(newer).differences(older)] == [
        "a 0.25", "b [0.0, 1.0]", "c true", "d " + "x" * 39 + "…", "e 1.234567e6",
    ]  # fmt: skip


def test_the_source_of_a_class_is_a_part() -> None:
    assert digest_source(Example) == digest_source(Example) != digest_source(Key)
