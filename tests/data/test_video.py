"""Frames by presentation time, against films whose every frame is known."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mindvideo.data.shots import find_cuts
from mindvideo.data.video import (
    _Clock,
    fit_square,
    is_film,
    probe,
    read_film,
    read_frames,
    read_whole_film,
    write_video,
)
from mindvideo.errors import DataError


def _grey(i):
    """Grey level that names frame i."""
    return 20 + (i * 13) % 200


def _encode(path, stamps, codec="libx264", pix="yuv420p", base=Fraction(1, 30), shape=(36, 50), rotation=None,
            options=None, draw=None):  # fmt: skip
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "5", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *shape, pix
        stream.time_base = stream.codec_context.time_base = base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, stamp in enumerate(stamps):
            image = np.full((*shape, 3), _grey(i), np.uint8) if draw is None else draw(i)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _greys(path, times, size=16):
    return read_frames(path, np.asarray(times, float), size)[:, size // 2, size // 2].mean(axis=-1)


CASES = {
    "plain.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3"}},
    "plain.mkv": {},
    "disc.vob": {"options": {"bf": "3"}},
    "disc.mpg": {"options": {"bf": "2"}},
    "late.mov": {"start": 45},
    "late.mkv": {"start": 45},
    "b_frames.avi": {"options": {"bf": "2"}},
    "simple.avi": {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "1"}},
    "web.webm": {"codec": "libvpx", "options": {"b": "2M"}},
    "ten_bits.mkv": {"pix": "yuv420p10le"},
    "ten_bits.mp4": {"pix": "yuv420p10le", "options": {"bf": "2"}},
    "ten_bits.mov": {"codec": "prores_ks", "pix": "yuv422p10le"},
    "odd.mkv": {"pix": "yuv444p", "shape": (37, 51)},
    "odd.mp4": {"pix": "yuv444p", "shape": (37, 51)},
    "odd.webm": {"codec": "libvpx", "shape": (37, 51), "options": {"b": "2M"}},
    "odd.avi": {"codec": "mjpeg", "pix": "yuvj420p", "shape": (37, 51)},
    "late.mp4": {"start": 45, "options": {"bf": "3"}},
    "late.webm": {"codec": "libvpx", "start": 45, "options": {"b": "2M"}},
}


@pytest.mark.parametrize("name", CASES)
def test_frame_shown_at_each_time(tmp_path, name):
    case = dict(CASES[name])
    start = case.pop("start", 0)
    path = _encode(tmp_path / name, range(start, start + 40), **case)
    times = [0, 1 / 3, 2 / 3, 1, 1.01, 39 / 30, 1 / 30 - 0.005, 7 / 30 + 0.02]
    shown = [0, 10, 20, 30, 30, 39, 0, 7]
    np.testing.assert_allclose(_greys(path, times), [_grey(i) for i in shown], atol=4)
    info = probe(path)
    assert info.n_frames == 40 and info.duration_s == pytest.approx(40 / 30, abs=2e-3)
    assert info.fps == pytest.approx(30, rel=2e-3) and (info.height, info.width) == case.get("shape", (36, 50))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(tmp_path, suffix):
    rng = np.random.default_rng(1)
    stamps = np.r_[0, np.cumsum(rng.integers(15, 400, 25))] + 700  # milliseconds
    path = _encode(tmp_path / f"v.{suffix}", stamps.tolist(), base=Fraction(1, 1000))
    times = np.sort(rng.uniform(0, (stamps[-1] - 700) / 1000, 60))
    times = times[np.abs(times[:, None] * 1000 + 700 - stamps).min(axis=1) > 3]
    truth = [max(i for i, stamp in enumerate(stamps) if (stamp - 700) / 1000 <= time) for time in times]
    np.testing.assert_allclose(_greys(path, times), [_grey(i) for i in truth], atol=4)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_times_before_zero_are_cut_off_by_the_file(tmp_path, suffix):
    """An edit list hides the first ten frames; in Matroska, which has none, everything moves to zero."""
    path = _encode(tmp_path / f"early.{suffix}", range(-10, 30), options={"bf": "2"})
    hidden = 0 if suffix == "mkv" else 10
    np.testing.assert_allclose(_greys(path, [0, 0.5, 0.9]), [_grey(hidden + i) for i in (0, 15, 27)], atol=4)
    info = probe(path)
    assert info.n_frames == 40 - hidden and info.duration_s == pytest.approx((40 - hidden) / 30, abs=2e-3)


def test_a_frame_without_a_timestamp_follows_the_one_before():
    stamps = [None, None, 90, None, 110]
    clock = _Clock("matroska", rate=20.0)
    read = [clock.read(SimpleNamespace(pts=stamp, dts=None, time_base=Fraction(1, 100))) for stamp in stamps]
    np.testing.assert_allclose(read, [0, 0.05, 0.10, 0.15, 0.30])


def test_frames_are_not_counted(tmp_path):
    """29.97 frames a second with a hole of half a second: at second 2 neither frame 60 nor frame 59 is shown."""
    base = Fraction(1001, 30000)
    stamps = [i for i in range(75) if not 20 <= i < 35]
    for suffix in ("mp4", "mkv"):
        path = _encode(tmp_path / f"ntsc.{suffix}", stamps, base=base)
        times = np.array([0.49, 0.7, 1.1, 2.0, 2.4])
        shown = [max(n for n, stamp in enumerate(stamps) if stamp * base <= time + 1e-3) for time in times]
        assert shown == [14, 19, 19, 44, 56]
        np.testing.assert_allclose(_greys(path, times), [_grey(n) for n in shown], atol=4)


def test_pixels_that_are_not_square(tmp_path):
    """40 x 80 pixels, each half as wide as high, show a square."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[10:30, 20:60] = 220  # a square of 20 x 20 in the picture that is seen
    path = tmp_path / "narrow.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 40, 80, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(1, 2)
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for fit in ("crop", "letterbox"):
        np.testing.assert_allclose(read_frames(path, np.zeros(1), 40, fit)[0], image[:, ::2], atol=20)


def test_times_in_any_order(tmp_path):
    path = _encode(tmp_path / "a.mp4", range(30))
    np.testing.assert_allclose(_greys(path, [0.9, 0.1, 0.5, 0.1]), [_grey(i) for i in (27, 3, 15, 3)], atol=4)


@pytest.mark.parametrize(("rotation", "turns"), [(-90, -1), (90, 1), (180, 2)])
def test_rotation_metadata(tmp_path, rotation, turns):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    path = _encode(tmp_path / "r.mp4", range(5), shape=(40, 60), rotation=rotation, draw=lambda i: image)
    found = read_frames(path, np.array([0.1]), 20, "stretch")[0]
    np.testing.assert_allclose(found[[4, 4, 15, 15], [4, 15, 4, 15]],
                               np.rot90(image, turns)[::2, ::2][[4, 4, -4, -4], [4, -4, 4, -4]], atol=12)  # fmt: skip


def test_rotation_in_the_track_header_means_clockwise(tmp_path):
    """ISO 14496-12: matrix a=0 b=1 c=-1 d=0 maps what is right to what is below."""
    image = np.full((40, 60, 3), 20, np.uint8)
    image[:, 40:] = 220
    path = _encode(tmp_path / "r.mp4", range(5), shape=(40, 60), draw=lambda i: image)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    numbers = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    content[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    path.write_bytes(content)
    found = read_frames(path, np.array([0.0]), 20, "stretch")[0].mean(axis=(1, 2))
    assert found[:12].max() < 40 and found[-5:].min() > 200


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [((-1, 0, 0, 1), "green red white blue"), ((1, 0, 0, -1), "blue white red green"), ((0, 1, 1, 0), "red blue green white"),
     ((0, -1, -1, 0), "white green blue red"), ((-1, 0, 0, -1), "white blue green red")],
)  # fmt: skip
def test_mirrored_films_are_shown_as_their_matrix_says(tmp_path, matrix, shown):
    """A pixel (p, q) is shown at (a p + c q, b p + d q); mirrored selfies, scanners and projectors write such matrices."""
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (200, 200, 200)}
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30], image[20:, 30:] = colours.values()
    path = _encode(tmp_path / "m.mp4", range(5), shape=(40, 60), draw=lambda i: image)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (0x10000 * number for number in matrix)
    content[at : at + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in (a, b, 0, c, d, 0, 0, 0, 0x40000000))
    path.write_bytes(content)
    found = read_frames(path, np.array([0.0]), 20, "stretch")[0]
    for corner, name in zip(found[[4, 4, 15, 15], [4, 15, 4, 15]], shown.split(), strict=True):
        np.testing.assert_allclose(corner, colours[name], atol=30)
    assert read_whole_film(path).shape == ((5, 60, 40, 3) if b else (5, 40, 60, 3))


def test_a_cover_is_no_film(tmp_path):
    frame = av.VideoFrame.from_ndarray(np.full((48, 48, 3), 250, np.uint8), format="rgb24")
    for name, with_film in (("both.mkv", True), ("cover.mkv", False)):
        with av.open(str(tmp_path / name), "w") as out:
            streams = [out.add_stream("mjpeg", rate=1)] + ([out.add_stream("libx264", rate=10)] if with_film else [])
            for stream in streams:
                stream.width = stream.height = 48
                stream.pix_fmt = "yuvj420p" if stream is streams[0] else "yuv420p"
            for stream, n_frames in zip(streams, (1, 30), strict=False):
                for i in range(n_frames):
                    frame.pts, frame.time_base = i, Fraction(1, 1) if n_frames == 1 else Fraction(1, 10)
                    out.mux(stream.encode(frame))
                out.mux(stream.encode())
    assert probe(tmp_path / "both.mkv").n_frames == 30
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "note.txt").write_text("no film\n" * 99)
    names = ("both.mkv", "cover.mkv", "text.mp4", "note.txt")
    assert [is_film(tmp_path / name) for name in names] == [True, False, True, False]  # text.mp4: a damaged film


def _area_mean(image, rows, columns):
    return image.reshape(rows, image.shape[0] // rows, columns, -1, 3).mean(axis=(1, 3))


def test_fits_against_block_means():
    image = np.random.default_rng(2).integers(0, 256, (24, 60, 3), dtype=np.uint8)
    np.testing.assert_allclose(fit_square(image, 12, "stretch"), _area_mean(image, 12, 12), atol=0.51)
    np.testing.assert_allclose(fit_square(image, 12, "crop"), _area_mean(image[:, 18:42], 12, 12), atol=0.51)
    boxed = fit_square(image, 20, "letterbox")
    np.testing.assert_allclose(boxed[6:14], _area_mean(image, 8, 20), atol=0.51)
    assert not boxed[:6].any() and not boxed[14:].any()
    # pixels half as wide as high: 60 columns look like 30
    np.testing.assert_allclose(fit_square(image, 12, "crop", 0.5), _area_mean(image[:, 6:54], 12, 12), atol=0.51)


def _scenes(lengths, seed=4):
    rng = np.random.default_rng(seed)
    for length in lengths:
        base = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        for i in range(length):
            frame = base.copy()
            frame[24:40, i % 48 : i % 48 + 14] = (250, 240, 30)
            yield frame


def test_cuts_at_source_rate(tmp_path):
    lengths = [40, 61, 33, 50]
    path = tmp_path / "cuts.mp4"
    write_video(path, _scenes(lengths), 30, 64)
    truth = np.cumsum(lengths)[:-1] / 30
    film = read_film(path, np.array([0.5, 3.0]), 32, cut_threshold=27.0)
    np.testing.assert_allclose(film.cuts_s, truth, atol=1e-3)
    np.testing.assert_array_equal(film.frames, read_frames(path, np.array([0.5, 3.0]), 32))
    direct = find_cuts((i / 30, frame) for i, frame in enumerate(_scenes(lengths)))
    np.testing.assert_allclose(direct, truth, atol=1e-9)
    assert read_film(path, np.array([]), 32, cut_threshold=200.0).cuts_s == []


def test_a_flash_is_not_two_cuts(tmp_path):
    frames = list(_scenes([30, 3, 40]))
    assert find_cuts((i / 30, frame) for i, frame in enumerate(frames)) == [1.0]


def test_writer(tmp_path):
    path = tmp_path / "w.mp4"
    frames = list(_scenes([20]))
    write_video(path, iter(frames), 15, 64)
    assert probe(path).duration_s == pytest.approx(20 / 15)
    found = read_frames(path, np.arange(20) / 15, 64)
    assert np.abs(found.astype(int) - np.stack(frames)).mean() < 6
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
    first = path.read_bytes()
    for _ in range(8):
        write_video(path, iter(frames), 15, 64)
        assert path.read_bytes() == first
    bad = tmp_path / "bad.mp4"
    for stream, size in [(frames, 63), ([], 64)]:
        with pytest.raises(DataError):
            write_video(bad, iter(stream), 15, size)
    with pytest.raises(DataError, match="cannot write"):
        write_video(tmp_path / "no" / "x.mp4", iter(frames), 15, 64)
    assert [item.name for item in tmp_path.iterdir()] == ["w.mp4"]


def test_short_and_broken_films_name_the_second(tmp_path):
    path = tmp_path / "s.mkv"
    write_video(path, _scenes([60]), 30, 64)
    with pytest.raises(DataError, match=r"stops at second 2\.00"):
        read_frames(path, np.array([0.0, 2.5]), 32)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"stops at second [01]\.\d\d"):
        read_frames(path, np.arange(20) / 10, 32)
    path.write_bytes(b"not a film")
    for call in (probe, lambda p: read_frames(p, np.zeros(1), 32)):
        with pytest.raises(DataError, match="damaged or unknown"):
            call(path)
    with pytest.raises(DataError, match="no such file"):
        probe(tmp_path / "absent.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "webm"])
def test_every_container_names_the_second(tmp_path, suffix):
    """Noise, which no decoder takes for pictures, from the middle of the data on; and the film cut off there."""
    rng = np.random.default_rng(11)
    pictures = rng.integers(0, 256, (60, 36, 50, 3)).astype(np.uint8)
    case = {"codec": "libvpx", "options": {"b": "2M"}} if suffix == "webm" else {}
    path = _encode(tmp_path / f"whole.{suffix}", range(60), draw=lambda i: pictures[i], **case)
    assert probe(path).duration_s == pytest.approx(2, abs=2e-3)
    with pytest.raises(DataError, match=rf"{path.name} is too short.*second 4\.00 is needed, it stops at second 2\.0"):
        read_frames(path, np.array([0.0, 4.0]), 16)
    content, middle = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(content[:middle] + rng.bytes(len(content) // 8) + content[middle + len(content) // 8 :])
    with pytest.raises(DataError, match=rf"{path.name} is .*stops at second [01]\.\d\d"):
        read_frames(path, np.arange(12) / 6, 16)
    path.write_bytes(content[:middle])
    named = r"damaged or unknown" if suffix in ("mp4", "mov") else r"stops? at second [01]\.\d\d"  # tables come last
    for read in (probe, lambda film: read_frames(film, np.arange(12) / 6, 16)):
        with pytest.raises(DataError, match=named):
            read(path)


def test_sound_without_picture(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="video stream"):
        probe(path)


def test_truncated_and_flipped_bytes_never_crash(tmp_path):
    rng = np.random.default_rng(5)
    whole = tmp_path / "whole.mp4"
    write_video(whole, _scenes([20, 20]), 30, 64)
    content, path = whole.read_bytes(), tmp_path / "broken.mp4"
    for i in range(60):
        broken = bytearray(content)
        if i % 2:
            del broken[int(rng.integers(len(content))) :]
        else:
            broken[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            probe(path)
            film = read_film(path, np.arange(8) / 6, 32, cut_threshold=27.0)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert not i % 2 and film.frames.shape == (8, 32, 32, 3)
