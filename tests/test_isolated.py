"""A decoder in a child process: the same frames, and whatever happens to the child, the parent goes on."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from assets import H264, VP9, damage_packet, numbers_in

from hiera_video.data.reading import child_process as isolated
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.reader import open_video
from hiera_video.data.shared_memory import reserve, share, shared_file
from hiera_video.errors import RequestError, UnreadableVideo


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return H264.write(tmp_path_factory.mktemp("isolated"))


@pytest.fixture(scope="module")
def shared() -> Iterator[IsolatedReader]:
    with IsolatedReader(time_limit=30) as reader:
        yield reader


@pytest.fixture
def own() -> Iterator[IsolatedReader]:
    """One whose child may be ill-treated."""
    with IsolatedReader(time_limit=30) as reader:
        yield reader


def child_of(reader: IsolatedReader) -> int:
    assert reader._child is not None
    return reader._child.process.pid


def test_a_video_in_a_child_is_the_video(h264: Path, shared: IsolatedReader) -> None:
    with open_video(h264) as expected, shared.open(h264) as video:
        assert (len(video), video.duration, video.fps, video.backend) == (90, expected.duration, expected.fps, "pyav")
        assert (video.height, video.width, video.stored_size) == (48, 64, (48, 64))
        assert video.fallback_reason == expected.fallback_reason
        np.testing.assert_array_equal(video.times, expected.times)
        for numbers in ([70, 3, 3, 31], range(90), [0]):
            np.testing.assert_array_equal(video.frames(numbers).pixels, expected.frames(numbers).pixels)


def test_options_reach_the_child(h264: Path, shared: IsolatedReader) -> None:
    with shared.open(h264, decode="fast", num_threads=1) as video:
        assert video.frames(range(1, 64, 4), short_side=24).pixels.shape == (16, 24, 32, 3)
        assert video.time_error > 0
    with pytest.raises(RequestError, match=r"^backend is 'gpu', but can be one of"):
        shared.open(h264, backend="gpu")


def test_a_stream_of_windows_comes_from_a_child_too(h264: Path, shared: IsolatedReader) -> None:
    rows = [[0, 4, 8], [6, 10, 14], [60, 64, 88]]
    with shared.open(h264) as video:
        assert [numbers_in(frames.pixels) for frames in video.stream(rows)] == rows


def test_frames_stay_when_others_are_read(h264: Path, shared: IsolatedReader) -> None:
    with shared.open(h264) as video:
        first = video.frames([5])
        video.frames([80])
        assert numbers_in(first.pixels) == [5]


def test_what_is_wrong_with_a_file_is_said_as_without_a_child(h264: Path, shared: IsolatedReader) -> None:
    with pytest.raises(UnreadableVideo, match=r"^/none.mp4 cannot be read \(No such file or directory\): check"):
        shared.open("/none.mp4")
    with shared.open(damage_packet(h264, 40)) as video:
        video.frames(range(90))
        assert video.error is not None and "cannot be decoded" in video.error
    with pytest.raises(IndexError, match="has frames 0 to 89"), shared.open(h264) as video:
        video.frames([90])


def test_a_child_that_is_killed_is_replaced_and_nothing_is_lost(h264: Path, own: IsolatedReader) -> None:
    video = own.open(h264)
    os.kill(child_of(own), signal.SIGKILL)
    assert numbers_in(video.frames([7]).pixels) == [7]
    os.kill(child_of(own), signal.SIGKILL)
    with own.open(h264) as video:
        assert numbers_in(video.frames([8]).pixels) == [8]


CRASH = """
import os, signal
from hiera_video.data.reading import child_process as isolated
open_video = isolated.open_video
def opens(path, **options):
    name = os.path.basename(path)
    if name == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "sleep.mp4":
        import time
        time.sleep(3600)
    if name == "huge.mp4":
        bytearray(1 << 60)
    return open_video(path, **options)
isolated.open_video = opens
"""


@pytest.fixture
def ill(h264: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of good videos; the children's decoder crashes, sleeps or eats memory when a name says so."""
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("good", "crash", "sleep", "huge"):
        (tmp_path / f"{name}.mp4").write_bytes(h264.read_bytes())
    return tmp_path


def test_a_file_that_crashes_the_decoder_is_named_and_the_next_is_read(ill: Path) -> None:
    with IsolatedReader(time_limit=30) as reader:
        with pytest.raises(
            UnreadableVideo, match=r"crash.mp4 makes the decoder crash \(SIGSEGV\): convert it, or leave"
        ):
            reader.open(ill / "crash.mp4")
        with reader.open(ill / "good.mp4") as video:
            assert numbers_in(video.frames([3]).pixels) == [3]


def test_a_decoder_that_sleeps_for_ever_is_ended_after_the_time_limit(ill: Path) -> None:
    with IsolatedReader(time_limit=3) as reader:
        reader.open(ill / "good.mp4")
        asleep = child_of(reader)
        reader.time_limit = 1
        with pytest.raises(UnreadableVideo, match=r"sleep.mp4 takes longer than 1 s to decode: leave it out, or raise"):
            reader.open(ill / "sleep.mp4")
        assert not psutil.pid_exists(asleep)
        reader.time_limit = 30
        with reader.open(ill / "good.mp4") as video:
            assert numbers_in(video.frames([3]).pixels) == [3]


def test_a_file_that_wants_more_memory_than_there_is_is_named(ill: Path) -> None:
    sentence = r"huge.mp4 needs more memory than 16 GiB: check the file\."
    with IsolatedReader(time_limit=30) as reader, pytest.raises(UnreadableVideo, match=sentence):
        reader.open(ill / "huge.mp4")


def test_the_child_ends_with_its_parent(h264: Path) -> None:
    code = (
        "from hiera_video.data.reading.child_process import IsolatedReader; import os, sys\n"
        f"reader = IsolatedReader(); reader.open({str(h264)!r}); print(reader._child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = int(answer.stdout)
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def test_a_child_that_was_started_early_decodes_for_the_first_reader(h264: Path) -> None:
    isolated.start_early(1)
    isolated.start_early(1)  # it waits already
    (spare,) = isolated._SPARE
    with IsolatedReader() as first, IsolatedReader() as second:
        first.open(h264)
        second.open(h264)
        assert child_of(first) == spare.process.pid != child_of(second)
    assert not isolated._SPARE
    assert spare.process.returncode is not None


def test_a_spare_child_that_died_is_replaced(h264: Path) -> None:
    isolated.start_early(1)
    (spare,) = isolated._SPARE
    spare.process.kill()
    spare.process.wait()
    with IsolatedReader() as reader, reader.open(h264) as video:
        assert numbers_in(video.frames([3]).pixels) == [3]


def test_a_forked_process_leaves_the_spare_child_to_its_parent(h264: Path) -> None:
    isolated.start_early(1)
    (spare,) = isolated._SPARE
    process = os.fork()
    if process == 0:
        code = 1
        try:
            with IsolatedReader() as reader:
                reader.open(h264)
                code = 0 if child_of(reader) != spare.process.pid else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    with IsolatedReader() as reader:
        reader.open(h264)
        assert child_of(reader) == spare.process.pid


def test_children_are_replaced_before_what_they_leak_adds_up(
    h264: Path, own: IsolatedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "MAX_OPENS", 2)
    children = []
    for _ in range(5):
        own.open(h264)
        children.append(child_of(own))
    assert [children.index(child) for child in children] == [0, 0, 2, 2, 4]


def test_a_copy_in_another_process_has_a_child_of_its_own(h264: Path, own: IsolatedReader) -> None:
    own.open(h264)
    copy = pickle.loads(pickle.dumps(own))
    assert (copy.time_limit, copy._child) == (30, None)


def test_a_fork_leaves_its_parents_child_alone(h264: Path, own: IsolatedReader) -> None:
    video = own.open(h264)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = 0 if numbers_in(own.open(h264).frames([9]).pixels) == [9] else 2
            own.close()
        finally:
            os._exit(code)
    assert os.waitpid(process, 0)[1] == 0
    assert numbers_in(video.frames([7]).pixels) == [7]


def test_an_impossible_time_limit_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match=r"^time_limit is 0, but is a number of seconds above 0\.$"):
        IsolatedReader(time_limit=0)


def test_other_codecs_come_from_the_child(tmp_path: Path, shared: IsolatedReader) -> None:
    with shared.open(VP9.write(tmp_path), num_threads=1, backend="decord") as video:
        assert (video.backend, numbers_in(video.frames([29, 3]).pixels)) == ("decord", [29, 3])


SMALL = """
import sys
from pathlib import Path
import numpy as np
from hiera_video import ClipDataset, ClipLoader
from hiera_video.data.lists.video_list import VideoList
from hiera_video.data.reading.mp4 import write_mp4
from hiera_video.data.views import test_views
from hiera_video.data.windows import Walk, read_ahead
from hiera_video.spec import Augment, ClipSpec

path = Path(sys.argv[1]) / "a.mp4"
picture = np.random.default_rng(0).integers(0, 256, (270, 480, 3), dtype=np.uint8)
write_mp4(path, (np.roll(picture, shift, axis=1) for shift in range(40)), 30)
videos = VideoList.make([str(path)] * 4, [0] * 4, ["a"])
loader = ClipLoader(ClipDataset(videos, ClipSpec(), augment=Augment(num_ops=0), num_augments=8), 2, num_workers=2)
print([tuple(batch["clip"].shape) for batch in loader])
loader.close()
print([tuple(answer["clips"].shape) for answer in test_views(videos, ClipSpec(), 5, 3, num_workers=2)])
print([len(decoded.windows) for decoded in read_ahead([(str(path), 0)] * 2, Walk(ClipSpec(), 0.1), num_workers=2)])
"""


@pytest.mark.parametrize("size", [pytest.param(size, marks=pytest.mark.slow) for size in ("64m", "2m")])
def test_a_small_dev_shm_is_enough(size: str, tmp_path: Path) -> None:
    mounted = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("needs the right to mount a /dev/shm of its own")
    script = f'{mounted} && exec "$0" "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, sys.executable, "-c", SMALL, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    clips, views, windows = done.stdout.splitlines()
    assert clips == str([(16, 3, 16, 224, 224)] * 2) and views == str([(15, 3, 16, 224, 224)] * 4)
    assert windows.startswith("[")


def test_memory_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    sentence = (
        r"^there is no room for 3 MB of frames that processes share \(No space left on device\): give the machine"
    )
    with shared_file() as file, pytest.raises(RequestError, match=sentence):
        reserve(file.fileno(), 3 * 2**20)


def test_a_shared_tensor_is_the_tensor_and_leaves_no_file_open() -> None:
    clip = torch.arange(24, dtype=torch.uint8).view(2, 3, 4).permute(0, 2, 1)
    before = len(os.listdir("/proc/self/fd"))
    value = share({"clip": clip, "more": [torch.tensor(3), "x"], "pair": (1, torch.zeros(0, 2))})
    assert torch.equal(value["clip"], clip) and value["clip"].stride() == clip.stride()
    assert value["more"][0] == 3 and value["pair"][1].shape == (0, 2)
    assert share(value["clip"]) is value["clip"]
    del value
    assert len(os.listdir("/proc/self/fd")) == before
