"""Films: frames by presentation time, shot changes, and H.264 writing.

Time 0 is that of the first frame. The frame at time t is the last one presented until t
plus one millisecond, because Matroska and WebM round. AVI and MPEG program streams
(``.mpg``) may lack presentation times; then frames are counted.

Shapes: T times, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from mindvideo.data.shots import TIME_TOLERANCE_S, CutFinder, shrink_bgr
from mindvideo.errors import DataError
from mindvideo.files import beside, require_content

Fit = Literal["crop", "stretch", "letterbox"]
SUFFIXES = (
    ".mp4", ".m4v", ".mkv", ".mov", ".qt", ".avi", ".divx", ".webm", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".wmv", ".asf",
    ".flv", ".f4v", ".ts", ".mts", ".m2ts", ".mxf", ".ogv", ".ogm", ".3gp", ".3g2", ".dv", ".rm", ".rmvb",
)  # fmt: skip
"""Endings of films; whether a file is one, FFmpeg decides (`is_film`)."""
SMALL_FILM = 200 * 200
"""Films of fewer pixels are decoded by one thread: more are no faster."""


class VideoInfo(NamedTuple):
    """Length from the first frame to the end of the last, mean rate, and stored size."""

    duration_s: float
    fps: float
    width: int
    height: int
    n_frames: int


@dataclass(frozen=True)
class FilmFrames:
    """Frames at chosen times, uint8 (T, size, size, 3), and the seconds at which shots change."""

    frames: np.ndarray
    cuts_s: list[float]


def is_film(path: Path) -> bool:
    """Whether FFmpeg finds moving pictures in a file: no still, sound, cover or text.

    A file that FFmpeg cannot open counts by its ending.
    """
    try:
        with av.open(str(path)) as container:
            stream = _picture_stream(container)
            if stream is None or container.format.name == "tty":  # FFmpeg plays text files as ANSI art
                return False
            pictures = (packet for packet in container.demux(stream) if packet.size)
            return len(list(itertools.islice(pictures, 2))) == 2
    except (av.FFmpegError, OSError, ValueError):
        return path.suffix.lower() in SUFFIXES


def probe(path: Path) -> VideoInfo:
    """Measure a film from its packets, without decoding.

    Raises
    ------
    DataError
        If the file is missing, damaged, without video, or shorter than its header says.
    """
    with _open(path) as (container, stream):
        span: list[tuple[float, float]] = []
        unstamped_s: list[float] = []
        uses_dts = container.format.name == "avi"
        with _as_data_error(path, lambda: span[-1][1] if span else 0.0):
            for packet in container.demux(stream):
                stamp = packet.dts if uses_dts or packet.pts is None else packet.pts
                if packet.size and not (packet.is_corrupt or packet.is_discard):
                    length = float((packet.duration or 0) * packet.time_base)
                    if stamp is None:
                        unstamped_s.append(length)
                    else:
                        span.append((float(stamp * packet.time_base), float(stamp * packet.time_base) + length))
        if not span:
            raise DataError(f"expected video frames in {path}, found none; supply an intact film")
        first = min(start for start, _ in span)
        last = max(start for start, _ in span) - first
        frame_s = last / (len(span) - 1) if len(span) > 1 else 1.0 / float(stream.average_rate or 25)
        duration_s = max(end for _, end in span) - first
        duration_s = duration_s if duration_s > last else last + frame_s
        if unstamped_s and container.format.name == "mpeg":
            duration_s = sum(unstamped_s) + sum(end - start for start, end in span)
        promised_s = _promised_duration(container, stream, first) or duration_s
        if duration_s < promised_s - max(2 * frame_s, 0.1):
            raise DataError(
                f"{path} is truncated: its header promises {promised_s:.2f} s, its frames stop at second "
                f"{duration_s:.2f}; supply the whole film"
            )
        n_frames = len(span) + len(unstamped_s)
        return VideoInfo(duration_s, n_frames / duration_s, stream.width, stream.height, n_frames)


def _promised_duration(container: Any, stream: Any, first_s: float) -> float | None:
    """Seconds of video according to the header; None where it does not say.

    Matroska states the end of the file, which sound may extend; AVI the number of frames.
    """
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration and "matroska" in container.format.name and len(container.streams) == 1:
        return container.duration / av.time_base - first_s
    return None


def read_frames(path: Path, times_s: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """Take the frames shown at given times.

    Parameters
    ----------
    path : Path
        Any film that FFmpeg decodes.
    times_s : ndarray, float (T,)
        Seconds since the first frame, in any order.
    size : int
        Height and width of the result.
    fit : {"crop", "stretch", "letterbox"}
        See `fit_square`.

    Returns
    -------
    ndarray, uint8 (T, size, size, 3)
        RGB.

    Raises
    ------
    DataError
        For a film that is missing, damaged or too short; gives the second where it stops.
    """
    return read_film(path, times_s, size, fit).frames


def read_film(
    path: Path, times_s: np.ndarray, size: int, fit: Fit = "crop", cut_threshold: float | None = None
) -> FilmFrames:
    """`read_frames` and, with a ``cut_threshold``, `find_cuts` in one pass."""
    times = np.asarray(times_s, dtype=np.float64)
    order = np.argsort(times, kind="stable")
    deadline = times[order] + TIME_TOLERANCE_S
    result = np.zeros((len(times), size, size, 3), dtype=np.uint8)
    finder = CutFinder(cut_threshold) if cut_threshold is not None else None
    taken, shown, interval, shown_s = 0, None, 0.0, 0.0
    for time_s, frame, aspect in _decode(path):
        until = int(np.searchsorted(deadline, time_s, side="left"))
        if shown is not None and until > taken:
            result[order[taken:until]] = _square(*shown, size, fit)
            taken = until
        if taken == len(times) and finder is None:
            return FilmFrames(result, [])
        if finder is not None:
            finder.add(time_s, shrink_bgr(frame))
        interval = time_s - shown_s or interval
        shown, shown_s = (frame, aspect), time_s
    if shown is not None and shown[0].duration:
        interval = max(interval, float(shown[0].duration * shown[0].time_base))
    end_s = shown_s + interval
    if taken < len(times) and shown is not None:
        wanted_s = float(times[order[-1]])
        if wanted_s > end_s + min(interval, 0.1):
            raise DataError(
                f"{path} is too short: a frame at second {wanted_s:.2f} is needed, it stops at second {end_s:.2f}; "
                "supply the whole film"
            )
        result[order[taken:]] = _square(*shown, size, fit)
    return FilmFrames(result, finder.cuts_s if finder else [])


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, size: int | tuple[int, int]) -> None:
    """Write RGB frames as H.264 (yuv420p, near-lossless), the same bytes each time.

    Parameters
    ----------
    path : Path
        ``.mp4``, ``.mkv`` or ``.mov``.
    frames : iterable of ndarray, uint8 (H, W, 3)
    fps : float
    size : int or (int, int)
        Height and width; even numbers.

    Raises
    ------
    DataError
        For an odd size, no frame at all, or a file that cannot be written.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height % 2 or width % 2:
        raise DataError(f"expected an even height and width for {path} (H.264, yuv420p), found {height} x {width}")
    rate = Fraction(fps).limit_denominator(1001)
    kind = {".mkv": "matroska"}.get(path.suffix, path.suffix.lstrip("."))
    try:
        with beside(path) as place, av.open(str(place), "w", format=kind, options={"fflags": "+bitexact"}) as container:
            # x264's macroblock tree made the bytes of small films differ from one writing to the next
            options = {"crf": "12", "preset": "veryfast", "threads": "1", "mbtree": "0"}
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            count = 0
            for count, image in enumerate(frames, start=1):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = count - 1, 1 / rate
                container.mux(stream.encode(frame))
            if not count:
                raise DataError(f"expected at least one frame for {path}, found none")
            container.mux(stream.encode())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    require_content(path, "a film")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"expected a film at {path}, found a damaged or unknown file ({error}); supply it anew"
        ) from error
    with container:
        stream = _picture_stream(container)
        if stream is None:
            raise DataError(f"expected a video stream in {path}, found none; supply a film")
        if stream.codec_context is None:
            raise DataError(f"expected a known video codec in {path}, found another or damage; re-encode the film")
        yield container, stream


def _picture_stream(container: Any) -> Any:
    """The film's own stream, not a cover beside it; None where there is none."""
    stream = container.streams.best("video") if container.streams.video else None
    if stream is None or stream.disposition & Disposition.attached_pic:
        return None
    return stream


@contextmanager
def _as_data_error(path: Path, stops_at: Callable[[], float]) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path} is damaged: it stops at second {stops_at():.2f} ({error}); supply it anew") from error


def _decode(path: Path) -> Iterator[tuple[float, Any, Fraction]]:
    """Seconds since the first frame, decoded frame, and pixel aspect, in order."""
    with _open(path) as (container, stream):
        if stream.width * stream.height > SMALL_FILM:
            stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        clock = _Clock(container.format.name, float(stream.average_rate or stream.guessed_rate or 25))
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        shape = None
        frames = container.decode(stream)
        while True:
            with _as_data_error(path, lambda: clock.time_s):
                frame = next(frames, None)
            if frame is None:
                break
            if frame.is_corrupt:
                raise DataError(f"{path} is damaged: it stops at second {clock.time_s:.2f}; supply it anew")
            before_s = clock.time_s
            time_s = clock.read(frame)
            if time_s < before_s - TIME_TOLERANCE_S:
                raise DataError(f"{path} is damaged: time runs backwards after second {before_s:.2f}; supply it anew")
            shape = shape or (frame.width, frame.height)
            if (frame.width, frame.height) != shape:
                raise DataError(
                    f"expected frames of {shape[0]} x {shape[1]} pixels throughout {path}, found "
                    f"{frame.width} x {frame.height} at second {time_s:.2f}; re-encode the film"
                )
            if frame.rotation % 90:
                raise DataError(
                    f"expected a film turned by a multiple of 90 degrees at {path}, found {frame.rotation}; "
                    "re-encode it upright"
                )
            yield time_s, frame, aspect
        if shape is None:
            raise DataError(f"expected video frames in {path}, found none; supply an intact film")


class _Clock:
    """Presentation time of decoded frames; frames without a timestamp are counted.

    In an MPEG program stream, several frames may share a timestamp: if one has none, all are counted.
    """

    def __init__(self, container: str, rate: float) -> None:
        self.time_s = 0.0
        self._uses_dts, self._may_count, self._rate = container == "avi", container == "mpeg", rate
        self._counts = False
        self._origin_s: float | None = None
        self._n_frames = 0

    def read(self, frame: Any) -> float:
        """Seconds since the first frame."""
        stamp = frame.dts if self._uses_dts else frame.pts
        self._counts = self._counts or (self._may_count and stamp is None)
        if stamp is None or self._counts:
            self.time_s += 1.0 / self._rate if self._n_frames else 0.0
        else:
            absolute = float(stamp * frame.time_base)
            if self._origin_s is None:
                self._origin_s = absolute - self._n_frames / self._rate
            self.time_s = absolute - self._origin_s
        self._n_frames += 1
        return self.time_s


def _square(frame: Any, aspect: Fraction, size: int, fit: Fit) -> np.ndarray:
    image, is_turned = _upright(frame)
    return fit_square(image, size, fit, float(1 / aspect if is_turned else aspect))


def _upright(frame: Any) -> tuple[np.ndarray, bool]:
    """The picture upright, uint8 (H, W, 3), and whether its sides were swapped.

    A display matrix ``a b u c d v x y w`` shows pixel (p, q) at (a p + c q, b p + d q).
    """
    image = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return image, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    is_turned = abs(int(b)) > abs(int(a))
    across, down = (c, b) if is_turned else (a, d)
    image = image.transpose(1, 0, 2) if is_turned else image
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]), is_turned


def read_whole_film(path: Path) -> np.ndarray:
    """Every frame of a film in order, upright, uint8 (T, H, W, 3); raises as `read_frames`."""
    return np.stack([_upright(frame)[0] for _, frame, _ in _decode(path)])


def fit_square(image: np.ndarray, size: int, fit: Fit = "crop", pixel_aspect: float = 1.0) -> np.ndarray:
    """Make an image square: uint8 (size, size, 3).

    Parameters
    ----------
    image : ndarray, uint8 (H, W, 3)
    size : int
        Height and width of the result.
    fit : {"crop", "stretch", "letterbox"}
        Keep the central square, distort, or add black bars.
    pixel_aspect : float
        Width of a pixel over its height.
    """
    height, width = image.shape[:2]
    shown_width = width * pixel_aspect
    if fit == "stretch":
        return resize(image, size, size)
    if fit == "crop":
        side = min(height, shown_width)
        rows, columns = max(1, round(side)), max(1, round(side / pixel_aspect))
        top, left = (height - rows) // 2, (width - columns) // 2
        return resize(image[top : top + rows, left : left + columns], size, size)
    scale = size / max(height, shown_width)
    rows, columns = max(1, round(height * scale)), max(1, round(shown_width * scale))
    result = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    result[top : top + rows, left : left + columns] = resize(image, rows, columns)
    return result


def resize(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize a picture uint8 (H, W, 3): by area if smaller, else linearly."""
    if image.shape[:2] == (rows, columns):
        return image
    is_smaller = rows <= image.shape[0] and columns <= image.shape[1]
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
