"""Training clips a second from original files and from shards of them, coded anew by `hiera-video data shards`.

    python scripts/benchmarks/shards.py --videos ../shared/videos --folder /tmp/shards --output shards.json

Makes, once, ten seconds of 240p and of 720p from the frames of each real H.264 clip of ``videos`` of at least 5 s,
played forwards and backwards (30 fps; x264 as it codes by default, keyframes up to 250 apart; 720p gets grain, or
enlarged pictures would be too easy), and shards of them with ``--short-side 256``. The real clips are a third set.
Both are read by our loader's own path: 16x4 clips of the same keys, random resized crop 224, decoded in a child process
by one thread; in alternating order. Beside the ratio of the medians stands what counted pictures allow: how many the
decoder decodes for the same clips, each weighted by its pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turn, machine, machine_text, markdown_table, ratio, write_json
from jsonargparse import auto_cli
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.reading.pyav_decoder import PyAVDecoder
from hiera_video.data.reading.reader import open_video
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import Augment, ClipSpec
from hiera_video.tasks.data.shards import shards as make_shards

LIMIT = 1.6
#: Height, width, and the grain's standard deviation in grey levels.
SIZES = {"240p": (240, 320, 0.0), "720p": (720, 1280, 3.0)}
FPS, SECONDS, SHORTEST_S = 30, 10, 5.0
CROPS = Augment(num_ops=0, erasing=0.0)


@dataclass(frozen=True)
class Result:
    """Clips a second of one set, medians over the rounds; ``cpu_ratio``: CPU time of the same clips, in one process.

    ``bound``: decoded pixels, of the originals over the shards.
    """

    name: str
    files: int
    originals: float
    shards: float
    ratio: float
    cpu_ratio: float
    frames: tuple[float, float]
    bound: float
    size_ratio: float
    grey_difference: float
    grey_difference_worst: float


def real_clips(folder: Path) -> list[Path]:
    """The H.264 files of a folder that are long enough and whole."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            with open_video(path) as video:
                video.read(np.array([0, len(video) - 1]))
                if video.index.codec == "h264" and video.duration >= SHORTEST_S and video.error is None:
                    found.append(path)
        except UnreadableVideo:
            continue
    return found


def make_long(source: Path, target: Path, size: tuple[int, int], grain: float) -> None:
    """Ten seconds of a clip's frames, forwards and backwards, in another size."""
    if target.exists():
        return
    rng = np.random.default_rng(0)
    count = FPS * SECONDS
    with open_video(source) as video:
        turns = np.concatenate([np.arange(len(video)), np.arange(len(video))[::-1]])
        pixels = video.frames(range(len(video))).pixels

    def frames() -> Iterator[NDArray[np.uint8]]:
        for number in np.resize(turns, count).tolist():
            picture = torch.from_numpy(pixels[number]).permute(2, 0, 1)[None].float()
            shown = interpolate(picture, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
            shown = shown + grain * rng.standard_normal(shown.shape[:2])[..., None]
            yield shown.clip(0, 255).astype(np.uint8)

    write_mp4(target, frames(), FPS, crf=23, options={"threads": "1"})


def write_list(file: Path, paths: list[Path]) -> VideoList:
    file.write_text("path,label\n" + "".join(f"{path.absolute()},a\n" for path in paths))
    return list_videos(file)


def clips_a_second(dataset: ClipDataset, epoch: int, repeats: int) -> float:
    """One clip of each video, ``repeats`` times at other places."""
    begin = time.perf_counter()
    for repeat in range(repeats):
        for index in range(len(dataset)):
            dataset[epoch * repeats + repeat, index]
    return repeats * len(dataset) / (time.perf_counter() - begin)


def decoded(videos: VideoList, num_epochs: int) -> tuple[float, float, float]:
    """Pictures, and pixels of them, that the decoder gives out for a clip, and CPU seconds of the whole of it."""
    numbers: list[int] = []
    inner = PyAVDecoder._decode

    def counting(self: PyAVDecoder, packets: Iterator[Any], key: int) -> Iterator[tuple[int, Any]]:
        for number, frame in inner(self, packets, key):
            numbers.append(frame.width * frame.height)
            yield number, frame

    PyAVDecoder._decode = counting  # type: ignore[method-assign]
    try:
        dataset = ClipDataset(videos, ClipSpec(), augment=CROPS, isolate=False)
        begin = time.process_time()
        clips_a_second(dataset, 0, num_epochs)
        seconds = time.process_time() - begin
    finally:
        PyAVDecoder._decode = inner  # type: ignore[method-assign]
    clips = num_epochs * len(videos)
    return len(numbers) / clips, sum(numbers) / clips, seconds / clips


def compare(name: str, paths: list[Path], folder: Path, rounds: int, repeats: int) -> Result:
    """Makes the shards where they are not there yet, and measures."""
    listed = folder / f"{name}.csv"
    originals, output = write_list(listed, paths), folder / f"{name}_shards"
    (report,) = make_shards(str(listed), output=output, short_side=256)
    if report.error is not None:
        raise SystemExit(f"the shards of {name} cannot be made: {report.error}")
    both = {"originals": originals, "shards": list_videos(output)}
    datasets = {kind: ClipDataset(videos, ClipSpec(), augment=CROPS) for kind, videos in both.items()}
    rates: dict[str, list[float]] = {kind: [] for kind in both}
    for dataset in datasets.values():  # children start
        clips_a_second(dataset, rounds, 1)
    for epoch in range(rounds):
        for kind in in_turn(both, epoch):
            rates[kind].append(clips_a_second(datasets[kind], epoch, repeats))
    counted = [decoded(videos, rounds * repeats) for videos in both.values()]
    (frames, pixels, cpu), (frames_anew, pixels_anew, cpu_anew) = counted
    return Result(
        name,
        len(paths),
        statistics.median(rates["originals"]),
        statistics.median(rates["shards"]),
        ratio(rates["shards"], rates["originals"])["median"],
        cpu / cpu_anew,
        (round(frames, 1), round(frames_anew, 1)),
        pixels / pixels_anew,
        report.bytes_after / report.bytes_before,
        report.grey_difference_mean or 0.0,
        report.grey_difference_worst or 0.0,
    )


def table_of(results: list[Result]) -> str:
    """A table in Markdown, a row for each set."""
    ratios = ("clips/s, shards over originals", "CPU time, originals over shards", "counted pixels allow")
    header = ("originals", "clips/s of originals", "of shards", *ratios, "bytes", "grey levels off")
    rows = []
    for result in results:
        rates = [f"{result.originals:.1f}", f"{result.shards:.1f}", f"{result.ratio:.2f}", f"{result.cpu_ratio:.2f}"]
        cells = [f"{result.bound:.1f}", f"{result.size_ratio:.2f}x", f"{result.grey_difference:.1f}"]
        rows.append([f"{result.name}, {result.files} files", *rates, *cells])
    return markdown_table(header, rows)


def main(videos: Path, folder: Path, rounds: int = 5, repeats: int = 3, output: Path | None = None) -> None:
    """Prints a line for each set. ``rounds`` of ``repeats`` clips of each video; ``output``: JSON, a table as .md."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    clips = real_clips(videos)
    sets = {"real": clips}
    for name, (height, width, grain) in SIZES.items():
        sets[name] = [folder / f"{name}_{clip.stem}.mp4" for clip in clips]
        for clip, target in zip(clips, sets[name], strict=True):
            make_long(clip, target, (height, width), grain)
    results = [compare(name, paths, folder, rounds, repeats) for name, paths in sets.items()]
    on = machine(("av", "torch", "numpy"))
    print(f"\n{machine_text(on)}")
    for result in results:
        verdict = "holds" if result.ratio >= LIMIT else "MISSED"
        print(
            f"{result.name}: {result.originals:.1f} clips/s from {result.files} originals, {result.shards:.1f} from "
            f"shards, {result.ratio:.2f} times (limit {LIMIT}: {verdict}), in CPU time {result.cpu_ratio:.2f}; decoded "
            f"frames {result.frames[0]} and {result.frames[1]} a clip, pixels allow {result.bound:.2f}; size "
            f"{result.size_ratio:.2f} times, {result.grey_difference:.1f} grey levels off (worst video "
            f"{result.grey_difference_worst:.1f})"
        )
    write_json(output, {"machine": on, "rounds": rounds, "sets": [asdict(result) for result in results]})
    if output is not None:
        output.with_suffix(".md").write_text(f"{machine_text(on)}; {rounds} rounds\n\n{table_of(results)}\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
