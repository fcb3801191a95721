"""Files damaged in every way: each is read or refused in one sentence, in time, and the reading process lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from assets import AV1, AVI, H264, HEVC, LONG_MKV, ODD_SIZE, TRANSPORT, VP9

from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.reader import open_video
from hiera_video.data.sampling import keyed_rng, train_clips
from hiera_video.errors import UnreadableVideo
from hiera_video.spec import ClipSpec

TIME_LIMIT = 20
SAMPLES = os.environ.get("HIERA_VIDEO_SAMPLES")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    made = [asset.write(folder) for asset in (H264, HEVC, VP9, AV1, LONG_MKV, AVI, TRANSPORT, ODD_SIZE)]
    return made + (sorted(Path(SAMPLES).iterdir()) if SAMPLES else [])


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut off, bits flipped (anywhere or in the header), another file's header, a stretch of zeros."""
    kind, size = rng.integers(5), len(data)
    if kind == 0:
        return data[: int(rng.integers(1, size))]
    if kind in (1, 2):
        changed = np.frombuffer(data, dtype=np.uint8).copy()
        places = rng.integers(0, size if kind == 1 else min(size, 2000), int(rng.integers(1, 50)))
        changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        return changed.tobytes()
    length = int(rng.integers(1, min(size, len(other), 4000)))
    if kind == 3:
        return other[:length] + data[length:]
    start = int(rng.integers(0, size - length + 1))
    return data[:start] + bytes(length) + data[start + length :]


def mutants(originals: list[Path], folder: Path, count: int) -> Iterator[Path]:
    contents = [path.read_bytes() for path in originals]
    for number in range(count):
        rng = keyed_rng(number)
        which, other = rng.integers(0, len(originals), 2)
        path = folder / f"{number}{originals[which].suffix}"
        path.write_bytes(damaged(contents[which], contents[other], rng))
        yield path
        path.unlink()


def read_all(originals: list[Path], folder: Path, count: int) -> tuple[int, int]:
    """How many of ``count`` damaged files are read, and how many refused; nothing else may happen."""
    num_read = num_refused = 0
    with IsolatedReader(time_limit=TIME_LIMIT) as reader:
        for number, path in enumerate(mutants(originals, folder, count)):
            try:
                with reader.open(path, num_threads=1) as video:
                    rows = train_clips(video.times, ClipSpec(), keyed_rng(number))
                    frames = video.frames(rows[0])
                    assert len(frames.pixels) == 16
                num_read += 1
            except UnreadableVideo as error:
                assert "\n" not in str(error) and str(error).endswith(".")
                assert "makes the reader fail" not in str(error)
                num_refused += 1
    return num_read, num_refused


def test_damaged_files_are_read_or_refused(originals: list[Path], tmp_path: Path) -> None:
    num_read, num_refused = read_all(originals, tmp_path, 60)
    assert num_read + num_refused == 60
    assert num_read > 5 and num_refused > 5


@pytest.mark.slow
def test_a_thousand_damaged_files_are_read_or_refused(originals: list[Path], tmp_path: Path) -> None:
    num_read, num_refused = read_all(originals, tmp_path, 1000)
    print(f"{num_read} read, {num_refused} refused")
    assert num_read + num_refused == 1000


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [False, True])
def test_five_thousand_opens_do_not_grow_a_worker(originals: list[Path], isolate: bool) -> None:
    process = psutil.Process()

    def memory() -> int:
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])

    with IsolatedReader(time_limit=TIME_LIMIT) as reader:
        sizes = []
        for number in range(5000):
            path = originals[number % 5]
            with reader.open(path, num_threads=1) if isolate else open_video(path, num_threads=1) as video:
                video.frames([number % len(video)])
            if number % 500 == 499:
                sizes.append(memory())
        print([round(size / 2**20) for size in sizes])
        assert sizes[-1] - sizes[0] < 100 * 2**20
