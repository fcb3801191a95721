"""Which frames a video has and when each is shown: read from the packets, nearly always without decoding.

Every decoder counts frames by this one index, so all agree on which frame a time means.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.reading import bitstream, damage, timeline
from hiera_video.data.reading.cut_off import ends_early, is_part
from hiera_video.data.reading.packets import Media, Packets, leave_out_others, read_packets
from hiera_video.errors import UnreadableVideo

#: Pixels that are more than so long come from broken headers, and would make pictures of any size.
MAX_PIXEL_ASPECT = Fraction(16)
SQUARE = Fraction(1)
#: Codecs that may store pictures in another order than they show them.
REORDERING = {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3", "rv30", "rv40", "cavs"}
#: An MPEG-4 packet as small as this shows nothing: it completes a packet of two pictures, or repeats one.
_EMPTY_MPEG4_BYTES = 10


@dataclass(frozen=True)
class FrameIndex:
    """Every frame of one video stream in display order, as the packets tell it.

    ``pts`` is int64 [N], ascending, in units of ``time_base`` seconds; ``keys`` are the frame numbers at which decoding
    can start; ``end`` is where the last frame ends, in seconds; ``stream`` is the stream's number in the file,
    ``container`` and ``codec`` are FFmpeg's names; ``pixel_aspect`` is width over height of a stored pixel, as the
    container says, or else the codec.

    ``ids`` int64 [N]: how each frame is recognised when it leaves the decoder, by its packet's time stamp or, where
    ``by_position``, by its packet's place in the stream, counted from 0. ``stored`` int64 [N]: the frame numbers in the
    order in which the file stores them. ``broken``: the ids of packets before which something is lost.

    ``error``: None, or what is damaged; ``warning``: None, or why times are not the file's own.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    time_base: Fraction
    end: float
    stream: int
    container: str
    codec: str
    stored_size: tuple[int, int]
    ids: NDArray[np.int64]
    stored: NDArray[np.int64]
    by_position: bool = False
    broken: frozenset[int] = frozenset()
    error: str | None = None
    warning: str | None = None
    pixel_aspect: Fraction = SQUARE

    @property
    def times(self) -> NDArray[np.float64]:
        """Float64 [N], seconds at which each frame begins to be shown."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def read_index(media: Media) -> tuple[FrameIndex, Any, list[Any] | None]:
    """Read a file's packets to their end.

    Args:
        media: the file.

    Returns:
        The index of the stream that FFmpeg calls best, the container that was read for it, and the stream's packets in
        the order of decoding, unless they are too many to keep or the file breaks off.

    Raises:
        UnreadableVideo: there is no such stream, or no frame in it.
    """
    import av

    try:
        with damage.caught() as messages:
            container = media.open()
    except (av.FFmpegError, OSError, ValueError) as error:
        why = damage.reason(error)
        raise UnreadableVideo(
            f"{media.name} is not a video that FFmpeg can open ({why}): check the file, or convert it to mp4."
        ) from error
    try:
        stream = container.streams.best("video")
        # The cover picture of a music file is a video stream to FFmpeg, but not to anybody else.
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise UnreadableVideo(
                f"{media.name} has no video stream (it holds {kinds} only): give a file with pictures."
            )
        if stream.codec_context is None:
            raise UnreadableVideo(f"{media.name} is coded in a way that FFmpeg cannot decode: convert it to mp4.")
        leave_out_others(container, stream)
        packets = read_packets(media, container, stream)
        if packets.error is None and (text := damage.worst(messages, stream.codec_context.name)):
            packets.error = f"the file is damaged ({text})."
        if not packets.pts:
            raise UnreadableVideo(f"{media.name} holds no complete frame of its video: copy or download it again.")
        index = _index(media, container, stream, packets)
    except BaseException:
        container.close()
        raise
    kept = packets.kept if index.error is None else None
    if kept is not None and index.by_position:
        for position, packet in enumerate(kept):
            packet.pts = position
    return index, container, kept


def _index(media: Media, container: Any, stream: Any, packets: Packets) -> FrameIndex:
    time_base, codec = stream.time_base, stream.codec_context
    rate = stream.average_rate or stream.guessed_rate or Fraction(30)
    usual = float(1 / (rate * time_base))
    order, unchanged, warning = _plain_order(container, stream, packets), True, None
    if order is not None:
        ascending = np.array(packets.pts, dtype=np.int64)[order]
    else:
        order, ascending, unchanged, warning = _mended(media, container, stream, packets, rate)
    final = int(order[-1])
    last = packets.durations[final] or (int(ascending[-1] - ascending[-2]) if len(order) > 1 else usual)
    if packets.durations[final] and codec.name in ("h264", "mpeg2video"):
        later = final + 1
        while later < len(packets.pts) and not packets.pictures[later]:  # the other field of the picture
            last, later = last + packets.durations[later], later + 1
    end = float((int(ascending[-1]) + Fraction(last)) * time_base)
    broken: frozenset[int] = frozenset()
    if packets.broken:
        names = dict(zip(packets.positions, packets.pts if unchanged else packets.positions, strict=True))
        broken = frozenset(int(names[position] or 0) for position in packets.broken if position in names)
    return FrameIndex(
        pts=ascending,
        keys=np.flatnonzero(np.array(packets.keyframes)[order]),
        time_base=time_base,
        end=end,
        stream=stream.index,
        container=container.format.name,
        codec=codec.name,
        stored_size=(codec.height, codec.width),
        ids=ascending if unchanged else np.array(packets.positions, dtype=np.int64)[order],
        stored=np.argsort(order, kind="stable"),
        by_position=not unchanged,
        broken=broken,
        error=_cut_off(media, container, stream, packets, end) or packets.error,
        warning=warning,
        pixel_aspect=_pixel_aspect(stream),
    )


def _leaps(container: Any) -> bool:
    """Whether clocks may jump in this container (FFmpeg's AVFMT_TS_DISCONT)."""
    return bool(container.format.flags & 0x0200)


def _plain_order(container: Any, stream: Any, packets: Packets) -> NDArray[np.int64] | None:
    """The packets in display order, where nothing is wrong with the stamps of a file; None: :func:`_mended` looks."""
    codec = stream.codec_context
    if container.format.name == "avi" or None in packets.pts or None in packets.dts:
        return None
    if min(packets.pictures) != 1 or max(packets.pictures) != 1 or not packets.keyframes[0]:
        return None
    if codec.name == "mpeg4" and packets.smallest <= _EMPTY_MPEG4_BYTES:
        return None
    order = timeline.plain_order(packets.pts, packets.dts, float(1 / stream.time_base), _leaps(container))
    if order is None or order[0] != 0:
        return None
    # Stamps that ascend as they are stored may be decode times, of pictures that are shown in another order.
    ascends = bool((order == np.arange(len(order))).all())
    return None if ascends and codec.name in REORDERING and codec.has_b_frames else order


def _mended(
    media: Media, container: Any, stream: Any, packets: Packets, rate: Fraction
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool, str | None]:
    """Display order, ascending stamps, whether these are the file's own, and a warning where it has none."""
    time_base, pts, dts = stream.time_base, packets.pts, packets.dts
    usual = float(1 / (rate * time_base))
    if container.format.name == "avi":
        pts = [None] * len(pts)  # FFmpeg makes them up there
    elif _are_decode_times(media, stream, packets):
        pts, dts = [None] * len(pts), pts
    shown, decoded, begins = timeline.join_clocks(pts, dts, usual, float(1 / time_base), _leaps(container))
    stamped = any(stamp is not None for stamp in shown)
    order = _display_order(media, stream, packets, shown, decoded, begins)
    warning = None
    if stamped:
        ascending = timeline.mend([shown[i] for i in order], usual)
    elif any(stamp is not None for stamp in decoded):
        ascending = timeline.times_of_decoding([decoded[i] for i in sorted(order)], packets.delay, usual)
    else:
        ascending = [round(number / (rate * time_base)) for number in range(len(order))]
        warning = f"the file has no times: they are counted from its average rate, {float(rate):.3f} frames a second."
    unchanged = stamped and ascending == [packets.pts[i] for i in order] and len(order) == len(packets.pts)
    return np.array(order, dtype=np.int64), np.array(ascending, dtype=np.int64), unchanged, warning


def _are_decode_times(media: Media, stream: Any, packets: Packets) -> bool:
    """Whether stamps ascend as pictures are stored, though these are shown in another order."""
    context = stream.codec_context
    if context.name not in REORDERING or not context.has_b_frames:
        return False
    if any(before is None or after is None or after < before for before, after in pairwise(packets.pts)):
        return False
    limit = 2 * timeline.MAX_REORDERING
    order = _order_by_decoding(media, stream, packets, limit=limit, lost_too=False)
    return order != sorted(order)


def _pixel_aspect(stream: Any) -> Fraction:
    aspect = stream.sample_aspect_ratio or SQUARE  # FFmpeg's guess, in which the container goes before the codec
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else SQUARE


def _cut_off(media: Media, container: Any, stream: Any, packets: Packets, end: float) -> str | None:
    if not packets.cut and not ends_early(media.place, container.format.name):
        return None
    there = f": {len(packets.pts)} of {stream.frames} frames are there" if stream.frames > len(packets.pts) else ""
    return f"the file is cut off after {end:.1f} s{there}."


def _display_order(
    media: Media,
    stream: Any,
    packets: Packets,
    shown: timeline.Stamps,
    decoded: timeline.Stamps,
    begins: list[int],
) -> list[int]:
    """Which packets show a picture, in display order: by their stamps where these can tell, else by decoding."""
    codec = stream.codec_context.name
    pictures = [i for i, count in enumerate(packets.pictures) if count]
    strange = codec == "mpeg4" and packets.smallest <= _EMPTY_MPEG4_BYTES
    if any(stamp is not None for stamp in shown):
        places = {i: place for place, i in enumerate(pictures)}
        starts = [0] + [places[i] for i in begins[1:] if i in places]
        order = timeline.sorted_by_time([shown[i] for i in pictures], [decoded[i] for i in pictures], starts)
        order = None if order is None else [pictures[place] for place in order]
    elif codec not in REORDERING:
        order = pictures
    else:
        order = _order_by_types(packets, pictures) if codec == "mpeg4" and not strange else None
    if order is None or strange or not any(packets.keyframes):
        return _order_by_decoding(media, stream, packets) or pictures
    key = next(i for i, is_key in enumerate(packets.keyframes) if is_key)
    early = {i for i in pictures if i < key} | set(order[: order.index(key)] if key in order else ())
    if early:  # the file begins within a group of pictures: some of the first may never be shown
        there = set(_order_by_decoding(media, stream, packets, limit=max(early) + 1 + timeline.MAX_REORDERING))
        order = [i for i in order if i not in early or i in there]
    return order or pictures


def _order_by_types(packets: Packets, pictures: list[int]) -> list[int] | None:
    """The display order of MPEG-4 without time stamps."""
    if packets.kept is None:
        return None
    kinds = [bitstream.mpeg4_kind(packets.kept[packets.positions[i]]) for i in pictures]
    if None in kinds:
        return None
    packets.delay = int("B" in kinds)
    return timeline.sorted_by_types(pictures, kinds)


def _order_by_decoding(
    media: Media, stream: Any, packets: Packets, limit: int | None = None, lost_too: bool = True
) -> list[int]:
    """The packets that show a picture, in display order, found by decoding them from the first on.

    A packet that does not decode keeps its place (``lost_too``): its picture is lost, not absent.
    """
    import av

    places = {position: i for i, position in enumerate(packets.positions)}
    order: list[int] = []
    first_out: int | None = None
    with media.open() as container:
        own = container.streams[stream.index]
        leave_out_others(container, own)
        context = own.codec_context
        context.thread_type = "NONE"
        position = 0
        try:
            for packet in container.demux(own):
                if packet.size and is_part(packet, container.format.name):
                    continue
                at_end = not packet.size or (limit is not None and position > limit)
                packet.pts = None if at_end else position
                with damage.caught() as messages:
                    try:
                        frames = context.decode(None if at_end else packet)
                    except av.FFmpegError:
                        frames = []
                        messages.append((av.logging.ERROR, "", "does not decode"))
                here = places.get(position)
                order += [places[frame.pts] for frame in frames if frame.pts in places]
                if frames and first_out is None:
                    first_out = position
                if lost_too and not frames and here is not None and packets.pictures[here] and damage.worst(messages):
                    order.append(here)
                if at_end:
                    break
                position += 1
        except (av.FFmpegError, IndexError):
            pass
    packets.delay = (first_out or 0) if limit is None else packets.delay
    return list(dict.fromkeys(order))
