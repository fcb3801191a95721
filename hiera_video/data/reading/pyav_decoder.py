"""Frames by PyAV: only what is asked for is decoded, and nothing is shown that a decoder patched together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from hiera_video.data.reading import bitstream, damage
from hiera_video.data.reading.cut_off import is_part
from hiera_video.data.reading.decoders import Image, Numbers, converter, rgb, upright_size
from hiera_video.data.reading.frame_index import FrameIndex
from hiera_video.data.reading.orientation import Matrix, is_quarter, with_matrix
from hiera_video.data.reading.packets import Media, leave_out_others
from hiera_video.data.reading.pictures import shrunk
from hiera_video.errors import UnreadableVideo

#: Codecs whose decoders leave out, on demand and without a trace, pictures that no other refers to: often a half.
SKIPPING_CODECS = ("h264", "hevc")


class _Doubt(Exception):
    """Somebody has reported damage: which picture it is can only be told by decoding one after the other."""


class PyAVDecoder:
    """Decodes forwards from where it stands; it seeks to go back, or when a keyframe lies between.

    Of H.264 and HEVC it does not decode pictures that were neither asked for nor are referred to: what comes out is
    the same, for half of the work or, in a file without such pictures, all of it. ``fast`` decodes none of those at
    all, and no loop filter: what is shown is the nearest picture, at most half the smallest step between frames away,
    else it is decoded exactly.

    Damage ends at the next keyframe: pictures until there are made of the damaged one. They are never shown, and
    ``error`` names their seconds. FFmpeg reports damage in several ways: an exception, a mark on the frame, a message.
    """

    backend = "pyav"

    def __init__(
        self, media: Media, index: FrameIndex, container: Any, packets: list[Any] | None, num_threads: int, fast: bool
    ) -> None:
        import av

        self.time_error = 0.0
        self.turned: bool | None = None
        self._media, self._index = media, index
        self._decoding_error = av.FFmpegError
        self._messages = av.logging.get_last_error  # counts those of all threads
        self._num_threads = num_threads
        self._numbers = {int(name): number for number, name in enumerate(index.ids)}
        self._keys = frozenset(index.keys.tolist())
        self._skips = index.codec in SKIPPING_CODECS
        self._fast = fast and self._skips
        self._wanted: frozenset[int] = frozenset()
        self._last = -1
        self._skipping = ""
        self._frames: Iterator[tuple[int, Any]]  # (number, (av.VideoFrame, its matrix)) from where decoding stands
        self._shown: tuple[int, Any] | None = None
        self._ahead: tuple[int, Any] | None = None
        self._started_at = 0
        self._size: tuple[int, int] | None = None
        self._convert = converter()
        self._reason = "no frame comes out of the decoder"
        self._lost: set[int] = set()  # frames that are damaged, or made of damaged ones
        self._alone: set[int] = set()  # those of them that no other is made of
        self._single: set[int] = set()  # frames found to be referred to by no other
        self._careful = False  # whether every packet is decoded by itself, and listened to
        self._absent: set[int] = set()  # frames that no decoding brings, without a sign of damage
        # Opening again is the one way back to the beginning that every format knows; these know another.
        self._container: Any = container
        self._packets = packets  # of the stream, in the order of decoding; None: read them from the container
        starts = len(index.keys) > 0 and index.keys[0] == 0
        self._rewinds = starts and index.container.startswith(("mov", "matroska")) and not index.by_position
        self._configure()
        self._start(0)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be half gone
            self.close()

    @property
    def error(self) -> str | None:
        """None, or one sentence that names the seconds that cannot be decoded."""
        if not self._lost:
            return None
        seconds = damage.name_seconds(self._lost, self._index.times, self._index.end)
        return f"frames {seconds} cannot be decoded ({self._reason})."

    def close(self) -> None:
        """Let go of the file and of the decoding threads."""
        # A decoding thread that reports damage waits for this one: let them end before the decoder is taken down.
        context = self._container.streams[self._index.stream].codec_context
        if context.is_open:
            context.flush_buffers()
        self._container.close()
        # The generator and this object hold each other: garbage with decoding threads, which a process forked later
        # would wait for in vain when it collects it.
        self._frames, self._shown, self._ahead, self._packets = iter(()), None, None, None

    def read(self, wanted: Numbers, short_side: int | None) -> tuple[Numbers, list[Image]]:
        """Decode frames in one pass.

        Args:
            wanted: int64 [n], ascending distinct frame numbers.
            short_side: pixels that suffice, or None for full size.

        Returns:
            The numbers of the frames shown, and one upright image for each of ``wanted``. In place of a frame that
            cannot be decoded stands the nearest earlier one that can, or the first later one.

        Raises:
            UnreadableVideo: nothing can be decoded.
        """
        step = int(np.diff(wanted).min(initial=len(self._index.pts)))
        if self._fast and len(wanted) > 1 and step >= 2:
            self._expect(wanted, nothing=True)
            frames = [self._nearest(number) for number in wanted.tolist()]
            near = [frame for frame in frames if frame is not None]
            shown = np.array([number for number, _ in near], dtype=np.int64)
            if len(near) == len(wanted) and 2 * np.abs(shown - wanted).max() <= step:
                times = self._index.times
                self.time_error = max(self.time_error, float(np.abs(times[shown] - times[wanted]).max()))
                return shown, [self._image(*frame, short_side) for frame in near]
        if self._fast:
            self._fast = False  # frames too near each other, or too few pictures left to choose from
            self._reopen()
        self._expect(wanted)
        exact = [self._exact(number, short_side) for number in wanted.tolist()]
        return np.array([number for number, _ in exact], dtype=np.int64), [image for _, image in exact]

    def check(self, wanted: Numbers) -> str | None:
        """What ``error`` says once the frames ``wanted`` have been decoded: None where all of them are whole."""
        self._expect(wanted)
        for number in wanted.tolist():
            self._find(number)
        return self.error

    def _exact(self, number: int, short_side: int | None) -> tuple[int, Image]:
        shown = self._find(number)
        return shown[0], self._image(*shown, short_side)

    def _find(self, number: int) -> tuple[int, Any]:
        """The frame ``number``, or the whole one that stands in for it."""
        self._go_to(number)
        if not self._is_shown(number) and self._skips and number not in self._absent | self._lost:
            self._skips = False  # something is broken: see it with every picture decoded
            self._start(self._key_before(number))
            self._go_to(number)
        while not self._is_shown(number) and number in self._lost:
            number = next((n for n in range(number, -1, -1) if n not in self._lost), -1)
            if number < 0:
                break
            self._go_to(number)
        if not self._is_shown(number) and self._started_at > 0 and number not in self._absent:
            # The seek went past it, or the keyframe is none: an earlier frame exists only from the beginning.
            self._reopen()
            self._go_to(max(number, 0))
        if not self._is_shown(number):
            self._absent.add(number)
        shown = self._shown or self._ahead
        if shown is None:
            raise UnreadableVideo(f"no frame of {self._media.name} can be decoded ({self._reason}): convert it to mp4.")
        return shown

    def _is_shown(self, number: int) -> bool:
        return self._shown is not None and self._shown[0] == number

    def _go_to(self, number: int) -> None:
        try:
            self._seek(number)
            self._advance(number)
        except _Doubt:
            self._careful = True
            self._start(self._key_before(number), reopen=True)
            self._go_to(number)

    def _nearest(self, number: int) -> tuple[int, Any] | None:
        self._go_to(number)
        near = [frame for frame in (self._shown, self._ahead) if frame is not None]
        if self._ahead is None and (self._shown is None or self._shown[0] < number):
            try:
                self._ahead = next(self._frames, None)
            except _Doubt:
                self._careful = True
                self._start(self._key_before(number), reopen=True)
                return self._nearest(number)
            near += [self._ahead] if self._ahead else []
        return min(near, key=lambda frame: abs(frame[0] - number), default=None)

    def _expect(self, wanted: Numbers, *, nothing: bool = False) -> None:
        """Tell which frames the next pass is for; those after the last may be asked for later, and are decoded."""
        self._wanted, self._last = frozenset() if nothing else frozenset(wanted.tolist()), int(wanted[-1])

    def _key_before(self, number: int) -> int:
        keys = self._index.keys
        before = int(np.searchsorted(keys, number, side="right"))
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
        self._start(0, reopen=True)

    def _start(self, key: int, reopen: bool = False) -> None:
        import av

        self._shown = self._ahead = None
        self._started_at = key
        reopen = reopen or (key == 0 and not self._rewinds) or (self._index.by_position and self._packets is None)
        stream = self._container.streams[self._index.stream]
        if reopen:
            if stream.codec_context.is_open:
                stream.codec_context.flush_buffers()
            self._container.close()
            self._container = self._media.open()
            self._configure()
            stream = self._container.streams[self._index.stream]
        elif self._packets is not None and stream.codec_context.is_open:
            stream.codec_context.flush_buffers()
        if self._packets is None and not self._index.by_position and (key > 0 or not reopen):
            try:
                self._container.seek(int(self._index.ids[key]), stream=stream)
            except av.FFmpegError:
                self._rewinds = False
                return self._start(0, reopen=True)
        if not self._skips and self._skipping:
            stream.codec_context.skip_frame, self._skipping = "DEFAULT", ""
        self._frames = with_matrix(self._decode(self._packets_from(key), key))
        return None

    def _packets_from(self, key: int) -> Iterator[Any]:
        """From the keyframe on, or from somewhere before it; None or an empty packet at the end."""
        name = int(self._index.ids[key]) if key else None
        if self._packets is None:
            position = 0
            for packet in self._container.demux(self._container.streams[self._index.stream]):
                if packet.size and is_part(packet, self._index.container):
                    continue
                if packet.size and self._index.by_position:
                    packet.pts, position = position, position + 1
                    if name is not None and packet.pts < name:
                        continue
                yield packet
            return
        first = next((i for i, other in enumerate(self._packets) if other.pts == name), 0)
        yield from self._packets[first:]
        yield None

    def _configure(self) -> None:
        """Set up a decoder that has not started."""
        stream = self._container.streams[self._index.stream]
        leave_out_others(self._container, stream)
        context = stream.codec_context
        one_by_one = self._careful or self._num_threads == 1
        context.thread_type = "NONE" if one_by_one else "AUTO"
        context.thread_count = 1 if one_by_one else self._num_threads
        if self._fast:
            context.options = {"skip_loop_filter": "all"}
        self._skipping = ""

    def _decode(self, packets: Iterator[Any], key: int) -> Iterator[tuple[int, Any]]:
        """(frame number, frame) in display order from a keyframe on, without those that are damaged."""
        import av

        context = self._container.streams[self._index.stream].codec_context
        waiting, first = key > 0, key  # frames shown before the keyframe are made of others that are not here
        before = -1  # the last frame that a packet began
        broken, keys, lost, numbers = self._index.broken, self._keys, self._lost, self._numbers
        try:
            for packet in packets:
                number = -1
                frames: list[Any] = []
                if packet is not None and packet.size:
                    number = numbers.get(packet.pts, -1)
                    is_key = number in keys
                    if packet.pts in broken and (is_key or not waiting):
                        self._lose(
                            damage.culprit(number, before, self._index.stored, self._index.codec),
                            "a part of the file is lost before them",
                        )
                    if waiting and is_key:
                        waiting, first = False, max(number, 0)
                    if waiting or number in lost or (number < 0 and before in lost):
                        before = number if number >= 0 else before
                        continue
                    if is_key and before in lost and before not in self._alone:
                        frames = self._frames_of(context, None, -1, first)  # what is whole before the damage
                        context.flush_buffers()
                    if self._skips:
                        self._skip(context, number)
                for frame in frames + self._frames_of(context, packet, before, first):
                    shown = numbers.get(frame.pts, -1)
                    if shown >= first and shown not in lost:
                        yield shown, frame
                before = number if number >= 0 else before
        except (av.FFmpegError, IndexError) as error:  # the file, not a packet: a disk or a network that failed
            self._reason = damage.reason(error)

    def _frames_of(self, context: Any, packet: Any, before: int, first: int) -> list[Any]:
        """Decode one packet, stored after frame ``before``; damaged frames from ``first`` on are noted as lost."""
        if self._careful:
            return self._listen(context, packet, before, first)
        said = self._messages()[0]
        try:
            frames: list[Any] = context.decode(packet)
        except self._decoding_error as error:
            raise _Doubt from error
        if self._messages()[0] != said:
            raise _Doubt
        for frame in frames:
            if frame.is_corrupt:
                raise _Doubt
        return frames

    def _listen(self, context: Any, packet: Any, before: int, first: int) -> list[Any]:
        number = -1
        if packet is not None and packet.size:
            number = self._numbers.get(packet.pts, -1)
            number = damage.culprit(number, before, self._index.stored, self._index.codec)
            if not bitstream.is_reference(self._index.codec, packet):
                self._single.add(number)
        failure: str | None = None
        frames: list[Any] = []
        with damage.caught() as messages:
            try:
                frames = context.decode(packet)
            except self._decoding_error as error:
                failure = damage.reason(error)
        failure = damage.worst(messages) or failure
        if failure is not None and number >= first:
            self._lose(number, failure)
        for frame in frames:
            number = self._numbers.get(frame.pts, -1)
            if frame.is_corrupt and number >= first:
                self._lose(number, "the picture is damaged")
        return frames

    def _lose(self, number: int, why: str) -> None:
        """Note that a frame is damaged, and with it all that are made of it: those stored up to the next keyframe."""
        if number in self._lost:
            return
        self._reason = why
        self._lost.add(number)
        if number in self._single:
            self._alone.add(number)
            return
        stored = self._index.stored
        begin = int(np.flatnonzero(stored == number)[0]) + 1
        following = next((i for i in range(begin, len(stored)) if int(stored[i]) in self._keys), len(stored))
        self._lost.update(stored[begin:following].tolist())
        if following < len(stored):  # stored behind the keyframe, but shown before it
            self._lost.update(int(n) for n in stored[following:] if n < stored[following])

    def _skip(self, context: Any, number: int) -> None:
        """Let the decoder leave out the picture ``number`` if nobody wants it and no other refers to it."""
        skipping = "NONREF" if self._fast or (number < self._last and number not in self._wanted) else "DEFAULT"
        if skipping != self._skipping:
            context.skip_frame = self._skipping = skipping

    def _image(self, number: int, shown: tuple[Any, Matrix | None], short_side: int | None) -> Image:
        frame, matrix = shown
        self.turned = is_quarter(matrix)
        # A stream may change its size or its orientation on the way; all frames come in the size of the first.
        if self._size is None and number and (frame.height, frame.width) != self._index.stored_size:
            self._size = self._first_size()
        self._size = self._size or upright_size(frame, matrix)
        return rgb(frame, matrix, shrunk(self._size, short_side), self._convert)

    def _first_size(self) -> tuple[int, int]:
        """(width, height) of the first frame, upright."""
        place = self._media.place
        position = 0 if isinstance(place, str) else place.tell()
        first = PyAVDecoder(self._media, self._index, self._media.open(), None, 1, fast=False)
        _, (image,) = first.read(np.zeros(1, dtype=np.int64), None)
        first.close()
        if not isinstance(place, str):
            place.seek(position)
        return image.shape[1], image.shape[0]
