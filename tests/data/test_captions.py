"""Captions per scan, files of captions, and the cache."""

import json

import numpy as np
import pytest

from mindvideo.data.captions import caption_frames, caption_windows, read_captions
from mindvideo.errors import DataError


def test_windows_join_scenes_in_order():
    captions = [
        ["a dog", "a cat", "a cat"],  # one scene: the majority
        ["a dog", "a cat", "a bird"],  # a tie: the earliest
        ["a dog.", "a cat", "a cat"],  # a cut after the first frame
        ["a dog", "a dog", "a dog"],  # a cut that changes nothing
        ["a dog", "a cat", "a bird"],  # three scenes
    ]
    scene = np.array([[4, 4, 4], [4, 4, 4], [4, 5, 5], [5, 6, 6], [6, 9, 2]])
    assert caption_windows(captions, scene) == [
        "a cat",
        "a dog",
        "a dog. Then a cat",
        "a dog",
        "a dog. Then a cat. Then a bird",
    ]


TIMES = {
    "seg1": np.arange(3)[:, None] * 2.0 + np.arange(4) / 2,
    "test1": np.arange(2)[:, None] * 2.0 + np.arange(4) / 2,
}


def test_files_of_captions(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text('\ufeffsegment,scan,caption\nseg1,2,c\nseg1,0,"a, b"\nseg1,1,b\ntest1,0,d\ntest1,1,e\nseg9,0,f\n')
    assert read_captions(path, TIMES) == {"seg1": [["a, b"] * 4, ["b"] * 4, ["c"] * 4], "test1": [["d"] * 4, ["e"] * 4]}
    path.write_text("segment,time_s,caption\nseg1,0,a\nseg1,2.5,b\nseg1,5.6,c\ntest1,0,d\n")
    assert read_captions(path, TIMES) == {
        "seg1": [["a"] * 4, ["a", "b", "b", "b"], ["b"] * 4],
        "test1": [["d"] * 4, ["d"] * 4],
    }
    path.write_text('segment,scan,caption,who\nseg1,0,"a ""b""\u2028c",x\nseg1,1,b,x\nseg1,2,c,x\n')
    assert read_captions(path, {"seg1": TIMES["seg1"]})["seg1"][0] == ['a "b"\u2028c'] * 4  # not a new line of the file
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"seg1": ["a", ["b", "c", "c", "c"], "d"], "test1": ["e", " f "]}))
    assert read_captions(path, TIMES) == {
        "seg1": [["a"] * 4, ["b", "c", "c", "c"], ["d"] * 4],
        "test1": [["e"] * 4, ["f"] * 4],
    }


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", "segment,scan,caption\nseg1,0,a\nseg1,1,b\ntest1,0,a\ntest1,1,a\n", ["3 captions of seg1", "missing scans: 2"]),
        ("a.csv", "segment,scan,caption\nseg1,0,a\nseg1,0,b\n", ["one caption for scan 0 of seg1"]),
        ("a.csv", "segment,scan,caption\nseg1,x,a\n", ["line 2", "'x'"]),
        ("a.csv", "segment,scan,caption\nseg1,0.5,a\n", ["line 2", "'0.5'"]),
        ("a.csv", "segment,scan,caption\nseg1,0\n", ["None"]),
        ("a.csv", "segment,scan,caption\nseg1,0,  \n", ["scan 0 of seg1"]),
        ("a.csv", "segment,frame,caption\n", ["segment, frame, caption"]),
        ("a.csv", "segment,scan,caption,caption\n", ["once each", "caption, caption"]),
        ("a.csv", "segment,scan,caption\nseg1,0,a dog, running\n", ["3 values on line 2", "quotation marks"]),
        ("a.csv", "", ["none"]),
        ("a.csv", "segment,time_s,caption\nseg1,1,a\n", ["from 0 s on", "first at 1 s"]),
        ("a.csv", 'segment,scan,caption\nseg1,0,"a\n', ["not a valid csv"]),
        ("a.json", "[1]", ["found a list"]),
        ("a.json", "{", ["not valid JSON"]),
        ("a.json", "[" * 100000, ["not valid JSON"]),
        ("a.json", '{"seg1": ' + "1" * 5000 + "}", ["not valid JSON"]),
        ("a.json", '{"seg1": ["a"], "test1": ["a", "b"]}', ["3 captions of seg1", "found 1"]),
        ("a.json", '{"seg1": ["a", "b", 3], "test1": ["a", "b"]}', ["scan 2 of seg1", "3"]),
        ("a.json", '{"seg1": ["a", "b", ["c"]], "test1": ["a", "b"]}', ["scan 2 of seg1", "4"]),
        ("a.txt", "x", [".csv or .json"]),
    ],
)  # fmt: skip
def test_refuses_other_files(tmp_path, name, text, parts):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_captions(path, TIMES)
    for part in (str(path), *parts):
        assert part in str(caught.value), caught.value


def test_refuses_missing_and_binary_files(tmp_path):
    with pytest.raises(DataError, match=r"or 'blip'.*no such file; add it"):
        read_captions(tmp_path / "absent.csv", TIMES)
    (tmp_path / "b.csv").write_bytes(b"segment,\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_captions(tmp_path / "b.csv", TIMES)


class _Captioner:
    def __init__(self, dies_at=None):
        self.batches, self.dies_at = [], dies_at

    def __call__(self, frames):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(len(frames))
        return [f"level {frame[0, 0, 0]}" for frame in frames]


def _frames(levels):
    return np.stack([np.full((3, 5, 3), level, np.uint8) for level in levels])


def test_captions_each_content_once_and_resumes(tmp_path):
    cache = tmp_path / "deep" / "captions.jsonl"
    levels = [3, 7, 3, 9, 11, 7, 13]
    with pytest.raises(KeyboardInterrupt):
        caption_frames(_Captioner(dies_at=1), _frames(levels), cache, batch=2)
    with cache.open("a") as handle:
        handle.write('{"key": "cut of')  # the kill came in the middle of a line
    captioner = _Captioner()
    assert caption_frames(captioner, _frames(levels), cache, batch=2) == [f"level {level}" for level in levels]
    assert captioner.batches == [2, 1]
    again = _Captioner()
    assert caption_frames(again, _frames([13, 3]), cache) == ["level 13", "level 3"]
    assert again.batches == []
    caption_frames(again, _frames([13]), cache, captioner_name="another")
    assert again.batches == [1]


def test_cache_and_captioner_errors(tmp_path):
    cache = tmp_path / "c.jsonl"
    with pytest.raises(DataError, match="2 captions from the captioner, found 1"):
        caption_frames(lambda frames: ["a"], _frames([1, 2]), cache)
    assert caption_frames(_Captioner(), _frames([1, 2]), cache) == ["level 1", "level 2"]
    whole = cache.read_text()
    cache.write_text(whole.replace("level 2", "level 3"))  # one flipped bit
    with pytest.raises(DataError, match=r"line 2 of the caption cache .* delete that line"):
        caption_frames(_Captioner(), _frames([1]), cache)
    cache.write_text(whole.splitlines()[0] + "\n")
    captioner = _Captioner()
    assert caption_frames(captioner, _frames([1, 2]), cache)[1] == "level 2" and captioner.batches == [1]
    cache.write_text('{"key": 3}\n')
    with pytest.raises(DataError, match="line 1 of the caption cache"):
        caption_frames(_Captioner(), _frames([1]), cache)
    with pytest.raises(DataError, match="cannot write"):
        caption_frames(_Captioner(), _frames([1]), cache / "below")
