"""The decoders behind :mod:`hiera_video.data.reading.reader`: PyAV, decord and torchcodec.

Each has ``read(wanted, short_side)``: ascending distinct frame numbers -> the frame numbers that are shown and one
upright image for each; ``error``: what it could not decode; and ``turned``: whether the file's height and width change
places in upright pictures (None before the first one). ``short_side`` is what the caller can do with, in
pixels: a decoder that can shrink on its way does so, the others give the full size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache, partial
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading.frame_index import FrameIndex, Media, leave_out_others, reason
from hiera_video.data.reading.orientation import (
    Matrix,
    check_first_picture,
    has_alpha,
    is_quarter,
    upright,
    with_matrix,
)
from hiera_video.data.reading.pictures import on_white, shrunk
from hiera_video.errors import UnreadableVideo

Image = NDArray[np.uint8]
Numbers = NDArray[np.int64]

#: Containers in which decord and torchcodec return the frame that was asked for. In AVI with B-frames and in transport
#: streams, decord 0.6, decord2 3.4 and torchcodec 0.17 return other frames without an error.
RELIABLE_CONTAINERS = ("mov", "matroska")
#: Codecs whose decoders leave out, on demand and without a trace in the rest, pictures that no other refers to. One
#: to two thirds of a usual H.264 file's pictures are such.
SKIPPING_CODECS = ("h264", "hevc")


class PyAVDecoder:
    """Decodes forwards from where it stands; it seeks to go back, or when a keyframe lies between.

    Of H.264 and HEVC it does not decode pictures that were neither asked for nor are referred to: what comes out is
    the same, for half of the work or, in a file without such pictures, all of it. ``fast`` decodes none of those at
    all, and no loop filter: what is shown is the nearest picture, at most half the smallest step between frames away,
    else it is decoded exactly.
    """

    backend = "pyav"

    def __init__(
        self, media: Media, index: FrameIndex, container: Any, packets: list[Any] | None, num_threads: int, fast: bool
    ) -> None:
        self.error: str | None = None
        self.time_error = 0.0
        self.turned: bool | None = None
        self._media, self._index = media, index
        self._num_threads = num_threads
        self._numbers = {int(pts): number for number, pts in enumerate(index.pts)}
        self._skips = index.codec in SKIPPING_CODECS and not index.in_order
        self._fast = fast and self._skips
        self._wanted: frozenset[int] = frozenset()
        self._last = -1
        self._skipping = ""
        # (frame number, (av.VideoFrame, its display matrix)) from where decoding stands
        self._frames: Iterator[tuple[int, Any]]
        self._shown: tuple[int, Any] | None = None
        self._ahead: tuple[int, Any] | None = None
        self._started_at = 0
        self._size: tuple[int, int] | None = None
        self._convert = converter()
        self._reason = "no frame comes out of the decoder"
        # Opening again is the one way back to the beginning that every format knows; these know another.
        self._container: Any = container
        self._packets = packets  # of the stream, in the order of decoding; None: read them from the container
        self._rewinds = index.container.startswith(("mov", "matroska")) and len(index.keys) > 0 and index.keys[0] == 0
        self._configure()
        self._start(0)

    def close(self) -> None:
        self._container.close()
        # The generator and this object hold each other: garbage with decoding threads, which a process forked later
        # would wait for in vain when it collects it.
        self._frames, self._shown, self._ahead, self._packets = iter(()), None, None, None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """The numbers of the frames shown, and one upright image for each of ``wanted`` (ascending), from one pass.

        In place of a frame that cannot be decoded stands the nearest earlier one that can, or the first later one.
        """
        step = int(np.diff(wanted).min(initial=len(self._index.pts)))
        if self._fast and len(wanted) > 1 and step >= 2:
            self._expect(wanted, nothing=True)
            frames = [self._nearest(number) for number in wanted.tolist()]
            found = [frame for frame in frames if frame is not None]
            shown = np.array([number for number, _ in found], dtype=np.int64)
            if len(found) == len(wanted) and 2 * np.abs(shown - wanted).max() <= step:
                times = self._index.times
                self.time_error = max(self.time_error, float(np.abs(times[shown] - times[wanted]).max()))
                return shown, [self._image(frame, short_side) for _, frame in found]
        if self._fast:
            self._fast = False  # frames too near each other, or too few pictures left to choose from
            self._reopen()
        self._expect(wanted)
        shown_images = [self._exact(number, short_side) for number in wanted.tolist()]
        return np.array([number for number, _ in shown_images], dtype=np.int64), [image for _, image in shown_images]

    def _exact(self, number: int, short_side: int | None) -> tuple[int, Image]:
        self._seek(number)
        self._advance(number)
        if (self._shown is None or self._shown[0] != number) and self._skips:
            self._skips = False  # something is broken: see it with every picture decoded
            self._start(self._key_before(number))
            self._advance(number)
        if self._shown is None and self._started_at > 0:
            # The keyframe is broken, or the seek went past it: an earlier frame exists only from the beginning.
            self._reopen()
            self._advance(number)
        shown = self._shown or self._ahead
        if shown is None:
            raise UnreadableVideo(f"no frame of {self._media.name} can be decoded ({self._reason}): convert it to mp4.")
        if shown[0] != number:
            self._note_gap()
        return shown[0], self._image(shown[1], short_side)

    def _nearest(self, number: int) -> tuple[int, Any] | None:
        self._seek(number)
        self._advance(number)
        near = [one for one in (self._shown, self._ahead) if one is not None]
        if self._ahead is None and (self._shown is None or self._shown[0] < number):
            following = next(self._frames, None)
            if following is not None:
                self._ahead = following
                near.append(following)
        return min(near, key=lambda one: abs(one[0] - number), default=None)

    def _expect(self, wanted: Numbers, *, nothing: bool = False) -> None:
        """Tell which frames the next pass is for; those after the last may be asked for later, and are decoded."""
        self._wanted, self._last = frozenset() if nothing else frozenset(wanted.tolist()), int(wanted[-1])

    def _key_before(self, number: int) -> int:
        keys = self._index.keys
        before = 0 if self._index.in_order else int(np.searchsorted(keys, number, side="right"))
        return int(keys[before - 1]) if before else 0

    def _seek(self, number: int) -> None:
        """Jump to the last keyframe before ``number`` if it is nearer than where decoding stands."""
        position = max(self._shown[0] if self._shown else -1, self._ahead[0] if self._ahead else -1)
        behind = self._shown is not None and number < self._shown[0]
        key = self._key_before(number)
        if behind or key > position + 1:
            self._start(key)

    def _advance(self, number: int) -> None:
        """Make ``_shown`` the last decodable frame up to ``number``; ``_ahead`` is one that was decoded too early."""
        while self._shown is None or self._shown[0] < number:
            following = self._ahead or next(self._frames, None)
            self._ahead = None
            if following is None:
                return
            if following[0] > number:
                self._ahead = following
                return
            self._shown = following

    def _reopen(self) -> None:
        self._rewinds = False
        self._start(0)

    def _start(self, key: int) -> None:
        import av

        self._shown = self._ahead = None
        self._started_at = key
        stream = self._container.streams[self._index.stream]
        if self._packets is not None and (key > 0 or self._rewinds):
            if stream.codec_context.is_open:
                stream.codec_context.flush_buffers()
        elif key > 0 or self._rewinds:
            try:
                self._container.seek(int(self._index.pts[key]), stream=stream)
            except av.FFmpegError:
                self._rewinds = False
                self._started_at = key = 0
        if key == 0 and not self._rewinds:
            self._container.close()
            self._container = self._media.open()
            self._configure()
        self._frames = with_matrix(self._decode(self._packets_from(key), waiting=key > 0))

    def _packets_from(self, key: int) -> Iterator[Any]:
        """From the keyframe on, or from somewhere before it; None or an empty packet at the end."""
        if self._packets is None:
            yield from self._container.demux(self._container.streams[self._index.stream])
            return
        pts = int(self._index.pts[key])
        first = next((i for i, one in enumerate(self._packets) if one.is_keyframe and one.pts == pts), 0) if key else 0
        yield from self._packets[first:]
        yield None

    def _configure(self) -> None:
        """Set up a decoder that has not started."""
        stream = self._container.streams[self._index.stream]
        leave_out_others(self._container, stream)
        context = stream.codec_context
        context.thread_type = "NONE" if self._num_threads == 1 else "AUTO"
        context.thread_count = self._num_threads
        if self._fast:
            context.options = {"skip_loop_filter": "all"}
        self._skipping = ""

    def _decode(self, packets: Iterator[Any], waiting: bool) -> Iterator[tuple[int, Any]]:
        """(frame number, frame) in display order; after a packet that does not decode, on from the next keyframe.

        What decoders return between the two is patched together from pictures that are not there.
        """
        import av

        context = self._container.streams[self._index.stream].codec_context
        count = 0
        try:
            for packet in packets:
                if packet is not None and packet.size and (packet.is_corrupt or (waiting and not packet.is_keyframe)):
                    continue
                if self._skips and packet is not None:
                    self._skip(context, self._numbers.get(packet.pts, -1))
                try:
                    frames = context.decode(packet)
                    waiting = waiting and packet is not None and not packet.is_keyframe
                except av.FFmpegError as error:
                    self._reason, waiting = reason(error), True
                    continue
                for frame in frames:
                    number = count if self._index.in_order else self._numbers.get(frame.pts)
                    count += 1
                    if number is not None and number < len(self._index.pts):
                        yield number, frame
        except (av.FFmpegError, IndexError) as error:  # the file, not a packet: a disk or a network that failed
            self._reason = reason(error)

    def _skip(self, context: Any, number: int) -> None:
        """Let the decoder leave out the picture ``number`` if nobody wants it and no other refers to it."""
        skipping = "NONREF" if self._fast or (number < self._last and number not in self._wanted) else "DEFAULT"
        if skipping != self._skipping:
            context.skip_frame = self._skipping = skipping

    def _note_gap(self) -> None:
        """Say in ``error`` which frames are missing: those between the last that came and the next."""
        begin = f"{self._index.times[self._shown[0]]:.2f} s" if self._shown else ""
        end = f"{self._index.times[self._ahead[0]]:.2f} s" if self._ahead else ""
        where = f"between {begin} and {end}" if begin and end else f"after {begin}" if begin else f"before {end}"
        self.error = f"frames {where} cannot be decoded ({self._reason})."

    def _image(self, shown: tuple[Any, Matrix | None], short_side: int | None) -> Image:
        frame, matrix = shown
        self.turned = is_quarter(matrix)
        # A stream may change its size or its orientation on the way; all frames come in the size of the first.
        self._size = self._size or upright_size(frame, matrix)
        return rgb(frame, matrix, shrunk(self._size, short_side), self._convert)


def upright_size(frame: Any, matrix: Matrix | None) -> tuple[int, int]:
    """(width, height) of an ``av.VideoFrame`` when it is turned."""
    return (frame.height, frame.width) if is_quarter(matrix) else (frame.width, frame.height)


def rgb(frame: Any, matrix: Matrix | None, size: tuple[int, int], convert: Any) -> Image:
    """An ``av.VideoFrame`` as it is shown: upright, and what is transparent on white, as that of stills.

    Args:
        frame: The picture as it is stored.
        matrix: The display matrix in force.
        size: (width, height) that it is to have upright.
        convert: What :func:`converter` gives.

    Returns:
        uint8 [H, W, 3], a view of the converted frame's own memory: rows may be padded, nothing is copied.
    """
    width, height = size[::-1] if is_quarter(matrix) else size
    form, channels = ("rgba", 4) if has_alpha(frame.format) else ("rgb24", 3)
    plane: Any = convert(frame, width=width, height=height, format=form).planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(height, plane.line_size)
    image: Image = rows[:, : channels * width].reshape(height, width, channels)
    if channels == 4:
        image = on_white(np.ascontiguousarray(image))
    return upright(image, matrix)


def converter() -> Any:
    """One for all frames of a video, and in this thread: to set one up, or its threads, takes longer than a picture."""
    from av.video.reformatter import VideoReformatter

    reformat = VideoReformatter().reformat
    # PyAV 18 takes as many threads as there are processors unless told otherwise; PyAV 16 cannot be told, and takes 1.
    return partial(reformat, threads=1) if "threads" in (VideoReformatter.reformat.__doc__ or "") else reformat


def _check_container(index: FrameIndex, backend: str) -> None:
    if not index.container.startswith(RELIABLE_CONTAINERS) or index.in_order:
        raise ValueError(f"{backend} does not find frames reliably in {index.container} files")


class DecordDecoder:
    """decord, from the PyPI package decord2 or the abandoned decord; raises what decord raises."""

    backend = "decord"
    error = None
    time_error = 0.0

    def __init__(self, media: Media, index: FrameIndex, num_threads: int) -> None:
        if not isinstance(media.place, str):
            raise ValueError("decord reads files only")
        _check_container(index, self.backend)
        if index.error is not None:
            raise ValueError("decord may hang in a file that is cut off")
        decord = import_decord()
        # A tolerance of 0 would mean "any": decord then passes a neighbour off as the frame that it cannot decode.
        self._reader: Any = decord.VideoReader(media.place, ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
        if len(self._reader) != len(index.pts):
            raise ValueError(f"decord counts {len(self._reader)} frames, the file has {len(index.pts)}")
        starts = self._reader.get_frame_timestamp(np.arange(len(index.pts)))[:, 0]  # float32, from zero
        times = index.times - index.times[0]
        if not np.allclose(starts - starts[0], times, rtol=1e-6, atol=1e-3):
            raise ValueError("decord gives the frames other times than the file")
        # decord numbers keyframes in the order of decoding. Where that is not the order of display (open groups of
        # pictures, usual in HEVC), it seeks to the wrong place and returns neighbours of the frames that were asked.
        if not np.array_equal(self._reader.get_key_indices(), index.keys):
            raise ValueError("decord does not find frames reliably among open groups of pictures")
        self.turned = check_first_picture(media, index, self.backend)

    def close(self) -> None:
        self._reader = None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """One upright image for each of ``wanted`` (ascending), in full size, from one pass."""
        batch = self._reader.get_batch(wanted)
        # Somebody may have told decord to give torch tensors (``decord.bridge``).
        return wanted, list(batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch))


class TorchcodecDecoder:
    """torchcodec, where it is installed with an FFmpeg that it finds; raises what torchcodec raises."""

    backend = "torchcodec"
    error = None
    time_error = 0.0

    def __init__(self, media: Media, index: FrameIndex, num_threads: int) -> None:
        import torchcodec.decoders

        _check_container(index, self.backend)
        if "av1" in index.codec or "dav1d" in index.codec:
            # Both bring a dav1d of their own: torchcodec 0.17 with FFmpeg 5 beside PyAV 18 ends the process here.
            raise ValueError("torchcodec may crash on AV1 where PyAV is loaded too")
        if not isinstance(media.place, str):
            media.place.seek(0)
        self._decoder: Any = torchcodec.decoders.VideoDecoder(
            media.place, stream_index=index.stream, dimension_order="NHWC", num_ffmpeg_threads=num_threads
        )
        if len(self._decoder) != len(index.pts):
            raise ValueError(f"torchcodec counts {len(self._decoder)} frames, the file has {len(index.pts)}")
        self.turned = check_first_picture(media, index, self.backend)

    def close(self) -> None:
        self._decoder = None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """One upright image for each of ``wanted`` (ascending), in full size, from one pass."""
        return wanted, list(self._decoder.get_frames_at(wanted.tolist()).data.numpy())


@cache
def import_decord() -> ModuleType:
    """The module ``decord``, quiet; warns once when two packages have been installed over each other."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    installed = set()
    for name in ("decord", "decord2"):
        try:
            metadata.distribution(name)
            installed.add(name)
        except metadata.PackageNotFoundError:
            pass
    if len(installed) == 2:
        warnings.warn(
            "decord and decord2 are both installed and overwrite each other's files: "
            "run `pip uninstall -y decord decord2 && pip install decord2`.",
            stacklevel=2,
        )
    return decord
