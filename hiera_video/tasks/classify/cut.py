"""Segments as files: clips cut out of a video, exactly by coding them again, or at keyframes by copying the stream."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import OutputError, UnreadableVideo
from hiera_video.files import replacing
from hiera_video.tasks.classify.segments import CutBy, FoundSegment

#: Formats that a copied stream is written in, by the ending of its source; all others become Matroska.
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def cut_clip(
    source: str, segment: FoundSegment, stem: Path, *, by: CutBy, reader: IsolatedReader | None = None
) -> tuple[Path, str | None]:
    """Writes one segment of a video as a file of its own.

    Args:
        source: The video.
        segment: What to cut out.
        stem: Its path, to which the label and the ending are added. The folder is made.
        by: "exact": from the frame shown at its start to the one shown at its end, coded again as H.264, without sound.
            "copy": the stream as it is, with sound, from the keyframe at or before its start.
        reader: Decodes in its child process. Default: this process decodes.

    Returns:
        The file, and one sentence about what could not be read in it.

    Raises:
        UnreadableVideo: The video cannot be read there, or its stream cannot be copied.
        OutputError: The file cannot be written.
    """
    label = re.sub(r"[^\w.-]+", "-", segment.label).strip("-.") or "segment"
    stem = stem.with_name(f"{stem.name}_{label}")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{stem.parent} cannot be written: {error.strerror or error}") from error
    if by == "copy":
        suffix = Path(source).suffix.lower()
        target = stem.with_name(stem.name + (suffix if suffix in FORMATS else ".mkv"))
        _copy(source, segment, target, FORMATS.get(suffix, "matroska"))
        return target, None
    target = stem.with_name(f"{stem.name}.mp4")
    with (reader.open if reader is not None else open_video)(source) as video:
        first, last = video.at(segment.start), video.at(segment.end)
        frames = (part.pixels[0] for part in video.stream([[index] for index in range(first, last + 1)]))
        times = (video.times[first : last + 1] - video.times[first]).tolist()
        write_mp4(target, frames, video.fps, times=times, pixel_aspect=video.pixel_aspect)
        return target, video.error


def _copy(source: str, segment: FoundSegment, target: Path, form: str) -> None:
    import av

    try:
        with replacing(target) as temporary, av.open(source) as media, av.open(str(temporary), "w", format=form) as out:
            video = media.streams.video[0]
            copies: dict[Any, Any] = {one: out.add_stream_from_template(one) for one in (video, *media.streams.audio)}
            assert video.time_base is not None
            media.seek(int(segment.start / video.time_base), stream=video, backward=True)
            begin = None
            for packet in media.demux(*copies):
                if packet.dts is None or packet.pts is None or packet.time_base is None:
                    continue
                if begin is None:  # sound before the picture begins is left out
                    if packet.stream is not video or not packet.is_keyframe:
                        continue
                    begin = packet.pts * packet.time_base
                if packet.stream is video and packet.dts * packet.time_base >= segment.end:
                    break
                shift = round(begin / packet.time_base)
                if packet.pts < shift:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copies[packet.stream]
                out.mux(packet)
            if begin is None:
                raise UnreadableVideo(f"{source} has no keyframe to cut at there: use cut_by exact")
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise UnreadableVideo(f"the stream of {source} cannot be copied ({error}): use cut_by exact") from error
