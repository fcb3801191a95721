"""Damaged files, read by us and by FFmpeg: what differs without a word, and which damage is not said.

    python scripts/fuzz_reader.py COUNT [FIRST]

Prints each finding and a summary; the exit code is 1 if a picture differs in silence, or the reader crashes or hangs.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import av
import numpy as np
from assets import AV1, AVI, H264, HEVC, LONG_MKV, ODD_SIZE, OPEN_GOP, TRANSPORT, VP9, Asset
from test_fuzz import damaged

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.damage import HARMLESS
from hiera_video.data.reading.orientation import Orientation, upright
from hiera_video.data.sampling import keyed_rng
from hiera_video.errors import UnreadableVideo

MPEG2 = Asset("mpeg2.ts", codec="mpeg2video", options={"bf": "2", "g": "10"})
ORIGINALS = (H264, HEVC, OPEN_GOP, VP9, AV1, LONG_MKV, AVI, TRANSPORT, ODD_SIZE, MPEG2)
MOST_FRAMES = 120


def by_ffmpeg(path: Path) -> tuple[list[Any], list[str]]:
    """The pictures that FFmpeg gives from first to last, and what it says about damage."""
    pictures: list[Any] = []
    said: list[str] = []
    with av.logging.Capture() as messages:
        try:
            with av.open(str(path), metadata_errors="ignore") as container:
                stream = container.streams.best("video")
                stream.thread_type, orientation = "NONE", Orientation()
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                    except av.FFmpegError as error:
                        said.append(str(error))
                        continue
                    for frame in frames[: MOST_FRAMES - len(pictures)]:
                        said += ["the frame is marked"] * frame.is_corrupt
                        pictures.append(upright(frame.to_ndarray(format="rgb24"), orientation.of(frame)))
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return pictures, said + [text for level, _, text in messages if level <= 16 and not HARMLESS.search(text)]


def differing(shown: Any, times: Any, error: str | None, pictures: list[Any], whole: list[list[Any]]) -> list[int]:
    """Frames, outside of the seconds that ``error`` names, of which FFmpeg has no equal near their place.

    Nor have the undamaged files, whose pictures are ``whole``: after damage FFmpeg may leave out pictures that are.
    """
    spans = [(float(a), float(b)) for a, b in re.findall(r"between ([-\d.]+) s and ([-\d.]+) s", error or "")]
    shift = len(pictures) - len(shown)
    found = []
    for number, (image, time) in enumerate(zip(shown, times, strict=True)):
        if any(a - 0.01 <= time <= b + 0.01 for a, b in spans):
            continue
        near = pictures[max(0, number - 3 + min(shift, 0)) : number + 4 + max(shift, 0)]
        near += [p for file in whole for p in file[max(0, number - 3) : number + 4]]
        if not any(p.shape == image.shape and np.abs(p.astype(int) - image).max() <= 3 for p in near):
            found.append(number)
    return found


def main(count: int, first: int) -> int:
    """Read ``count`` damaged files; returns how many findings there are that must not be."""
    counts: Counter[str] = Counter()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    with tempfile.TemporaryDirectory() as folder, IsolatedReader(time_limit=20) as reader:
        originals = [asset.write(Path(folder)) for asset in ORIGINALS]
        contents = [path.read_bytes() for path in originals]
        whole = [by_ffmpeg(path)[0] for path in originals]
        for number in range(first, first + count):
            rng = keyed_rng(number)
            which, other = rng.integers(0, len(originals), 2)
            path = Path(folder) / f"{number}{originals[which].suffix}"
            path.write_bytes(damaged(contents[which], contents[other], rng))
            try:
                with reader.open(path, num_threads=1) as video:
                    frames = video.frames(range(min(len(video), MOST_FRAMES)))
                    shown, times, error = frames.pixels.copy(), video.times[: len(frames.pixels)], video.error
            except UnreadableVideo as failure:
                kind = "crash or hang" if re.search("crash|takes longer|fail \\(", str(failure)) else "refused"
                counts[kind] += 1
                if kind != "refused":
                    print(number, originals[which].name, failure, flush=True)
                continue
            pictures, said = by_ffmpeg(path)
            wrong = differing(shown, times, error, pictures, [whole[which], whole[other]])
            kind = "differs in silence" if wrong else "not said" if said and error is None else "right"
            counts[kind] += 1
            if kind == "right" and error:
                counts["of them with an error"] += 1
                counts["of these, FFmpeg silent"] += not said
            if kind != "right":
                print(
                    number,
                    originals[which].name,
                    kind,
                    wrong[:6],
                    len(shown),
                    len(pictures),
                    error,
                    said[:2],
                    flush=True,
                )
            path.unlink()
    print(dict(counts))
    return counts["crash or hang"] + counts["differs in silence"]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0)
