"""Shards: what goes in comes out, on disk and over a network, through our loader and webdataset's."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import AVI, LATE_START, ODD_SIZE, ONE_FRAME, ROTATED, VARIABLE, VP9, Asset, numbers_in
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.cli import main
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.data.loader import ClipLoader
from hiera_video.data.reading import shards as shards_module
from hiera_video.data.reading.files import extension, local_file
from hiera_video.data.reading.reader import open_video
from hiera_video.data.reading.shards import Member, is_member, member_path, parse_member
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import Augment, ClipSpec
from hiera_video.tasks.data import one_shard
from hiera_video.tasks.data.check import check

SPEC = ClipSpec(num_frames=4, frame_stride=4, size=(32, 32), resize=40)
PLAIN = Augment(crop_area=(1.0, 1.0), crop_aspect=(4 / 3, 4 / 3), flip=0.0, num_ops=0, erasing=0.0)
NUM_VIDEOS = 8
CHARACTERS = st.characters(exclude_categories=["Cs"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """list.csv of eight videos of classes b, a, c, in files of odd names."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(NUM_VIDEOS):
        asset = Asset(f"{number} #&=%41é.mp4", num_frames=30 + number, options={"g": "250", "preset": "ultrafast"})
        asset.write(folder)
    lines = [f"{number} #&=%41é.mp4,{'bac'[number % 3]}\n" for number in range(NUM_VIDEOS)]
    (folder / "list.csv").write_text("path,label\n" + "".join(lines))
    return folder / "list.csv"


def run(*argv: object) -> int:
    return main(["data", "shards", *map(str, argv), "--num-workers", "1"])


@pytest.fixture(scope="module")
def copied(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three files, as they are."""
    folder = tmp_path_factory.mktemp("copied")
    assert run(source, "--output", folder, "--shard-size", 3) == 0
    return folder


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Answers one range of bytes, as nginx does."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if wanted is None or not os.path.isfile(path):
            super().do_GET()
            return
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        size, first = os.path.getsize(path), int(wanted[1])
        last = min(int(wanted[2]), size - 1)
        if first > last:
            self.send_error(416)
            return
        with open(path, "rb") as file:
            file.seek(first)
            data = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler] = RangeHandler) -> Iterator[Any]:
    """A server on loopback with its ``url`` and what it was ``asked`` for by ranges."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
        server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()


def paths_of(videos: VideoList) -> list[str]:
    return [videos.path(index) for index in range(len(videos))]


def bytes_of(path: str) -> bytes:
    with local_file(path) as file:
        return Path(file).read_bytes()


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    return target


# --- names ------------------------------------------------------------------------------------------------------------


@given(
    st.text(min_size=1),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    | st.sampled_from(["#&%", "a b.mp4", "%23", "\udcff"]),
)
def test_a_member_path_is_parsed_back(shard: str, offset: int, size: int, name: str) -> None:
    path = member_path(shard, offset, size, name)
    assert parse_member(path) == Member(shard, offset, size, name) and is_member(path)
    assert parse_member(f"{path}.tar#") is None
    assert "/" not in path.removeprefix(shard)


def test_a_member_has_the_extension_of_its_video_at_an_address_too() -> None:
    for shard in ("a#b/train 0.tar", "http://host/train-0.tar"):
        assert extension(member_path(shard, 512, 10, "a/x#1.MP4")) == ".mp4"
    assert extension("a#b.webm") == ".webm" and not is_member("http://host/a.tar#offset=1&size=2")


# --- round trips ------------------------------------------------------------------------------------------------------


def test_copies_come_back_byte_for_byte_with_their_labels(source: Path, copied: Path) -> None:
    before, after = list_videos(source), list_videos(copied)
    assert after.classes == before.classes == ["a", "b", "c"]
    assert after.labels.tolist() == before.labels.tolist()
    assert paths_of(list_videos(copied / "index.csv")) == paths_of(after)
    assert [bytes_of(path) for path in paths_of(after)] == [Path(path).read_bytes() for path in paths_of(before)]
    assert sorted(path.name for path in copied.glob("*.tar")) == [f"train-{number:06d}.tar" for number in range(3)]
    assert (copied / "index.csv").read_text().splitlines()[:2] == [
        "path,label",
        f"train-000000.tar#offset=1536&size={os.path.getsize(before.path(0))}&name=00000000.mp4,b",
    ]


def test_shards_have_the_permissions_that_the_umask_gives(source: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run(source, "--output", tmp_path / "out", "--shard-size", 8) == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 7 and {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_frames_come_out_of_a_shard_in_this_process_and_in_a_child(copied: Path) -> None:
    videos = list_videos(copied)
    for backend in ("pyav", "decord"):
        with open_video(videos.path(7), backend=backend) as video:
            assert numbers_in(video.frames([0, 20, 36]).pixels) == [0, 20, 36]
            assert video.path == videos.path(7)
    sample = ClipDataset(videos, SPEC, augment=PLAIN)[0, 7]
    assert sample["path"] == videos.path(7) and sample["problems"] == []


def test_webdataset_reads_the_same(source: Path, copied: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(copied.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(NUM_VIDEOS)]
    assert [sample["mp4"] for sample in samples] == [bytes_of(path) for path in paths_of(list_videos(copied))]
    abouts = [json.loads(sample["json"]) for sample in samples]
    assert abouts == [
        {"label": "bac"[number % 3], "path": path} for number, path in enumerate(paths_of(list_videos(source)))
    ]


def test_what_is_coded_anew_has_the_same_frames_at_the_same_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = [VARIABLE, LATE_START, ODD_SIZE, ROTATED, ONE_FRAME, AVI, VP9]
    lines = [f"{asset.write(tmp_path)},{asset.name}\n" for asset in assets]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines) + f"{tmp_path}/missing.mp4,x\n")
    output = tmp_path / "out"
    options = ("--short-side", 32, "--keyframe-interval", 8, "--shard-size", "1GB", "--crf", 12)
    assert run(tmp_path / "list.csv", "--output", output, *options) == 1
    videos = list_videos(output)
    assert len(videos) == len(assets)
    for index, asset in enumerate(assets):
        with open_video(videos.path(index)) as video:
            frames = video.frames(range(len(video)))
            assert np.abs(video.times - asset.times).max() < 1e-3, asset.name
            assert numbers_in(frames.pixels) == list(range(asset.num_frames)), asset.name
            height, width = asset.upright
            assert min(frames.pixels.shape[1:3]) == 32 and (height < width) == (video.height < video.width)
            assert (np.diff(video.index.keys) == 8).all() and video.index.codec == "h264"
    report = json.loads((output / "report.json").read_text())
    assert report["videos"] == len(assets) and report["left_out"] == 1 and report["shards"] == 1
    assert report["frames"] == sum(asset.num_frames for asset in assets) and report["bytes_after"] > 0
    assert 0 < report["grey_difference_mean"] < report["grey_difference_worst"] < 20
    left_out = (output / "left_out.csv").read_text()
    assert left_out.startswith("path,reason\n") and left_out.count("\n") == 2 and "missing.mp4" in left_out
    assert "grey_difference_mean" in capsys.readouterr().out


def test_classes_segments_and_several_labels_survive(source: Path, tmp_path: Path) -> None:
    names = [path for path in sorted(source.parent.iterdir()) if path.suffix == ".mp4"]
    (tmp_path / "classInd.txt").write_text("1 Zed\n2 Never\n3 Abc\n")
    (tmp_path / "trainlist01.txt").write_text("Abc/0.mp4 3\nZed/1.mp4 1\n")
    (tmp_path / "s.csv").write_text("path,start,end,label\nAbc/0.mp4,0.25,0.5,x\nAbc/0.mp4,0.5,,y\n")
    (tmp_path / "m.csv").write_text("path,labels\nAbc/0.mp4,x;y\nZed/1.mp4,\n")
    for number, name in enumerate(("Abc/0.mp4", "Zed/1.mp4")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(names[number])
    for file in ("trainlist01.txt", "s.csv", "m.csv"):
        output = tmp_path / f"shards_{file}" / "train"
        assert run(tmp_path / file, "--output", output) == 0
        before, after = list_videos(tmp_path / file), list_videos(output.parent)
        assert after.classes == before.classes and after.labels.tolist() == before.labels.tolist()
        assert after.starts.tolist() == before.starts.tolist() and after.ends.tolist() == before.ends.tolist()
        with serving(output) as server:
            assert list_videos(f"{server.url}/index.csv").classes == before.classes
        index = (output / "index.csv").read_bytes()
        assert main(["data", "index", str(output)]) == 0 and (output / "index.csv").read_bytes() == index


def test_shards_that_webdataset_wrote_are_indexed(source: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    videos = paths_of(list_videos(source))
    kinds: list[tuple[str, Any]] = [("json", {"label": "é"}), ("cls", 3), ("txt", "some words")]
    for kind, label in kinds:
        folder = tmp_path / kind
        folder.mkdir()
        with webdataset.TarWriter(str(folder / "a.tar")) as tar:
            for number, path in enumerate(videos[:2]):
                data = Path(path).read_bytes()
                tar.write({"__key__": f"deep/{number:04d}", "jpg": b"thumb", "mp4": data, kind: label})
        assert main(["data", "index", str(folder)]) == 0
        listed = list_videos(folder)
        assert [bytes_of(path) for path in paths_of(listed)] == [Path(path).read_bytes() for path in videos[:2]]
        assert listed.classes[int(listed.labels[0])] == str(label["label"] if isinstance(label, dict) else label)


# --- over a network ---------------------------------------------------------------------------------------------------


def loader_of(videos: VideoList, rank: int, num_workers: int = 2) -> ClipLoader:
    dataset = ClipDataset(videos, SPEC, augment=PLAIN)
    return ClipLoader(dataset, 1, num_workers=num_workers, rank=rank, num_processes=2)


@pytest.mark.slow  # four processes; test_loader splits steps
def test_two_nodes_of_two_workers_share_an_address_and_go_on_where_they_stopped(copied: Path) -> None:
    with serving(copied) as server:
        videos = list_videos(f"{server.url}/index.csv")
        assert server.asked == [] and videos.path(0).startswith(f"{server.url}/train-000000.tar#offset=1536&")
        seen: list[str] = []
        for rank in (0, 1):
            first = loader_of(videos, rank)
            seen += [path for batch in itertools.islice(first, 2) for path in batch["path"]]
            state = json.loads(json.dumps(first.state_dict()))
            first.close()
            second = loader_of(videos, rank, num_workers=1)
            second.load_state_dict(state)
            seen += [path for batch in second for path in batch["path"]]
            assert second.problems == [] and second.epoch == 1
            second.close()
        assert sorted(seen) == sorted(paths_of(videos)) and len(server.asked) >= NUM_VIDEOS


def test_a_server_without_ranges_gives_the_right_bytes_or_says_so(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(copied, PlainHandler) as server:
        videos = list_videos(f"{server.url}/index.csv")
        here = list_videos(copied)
        assert [bytes_of(path) for path in paths_of(videos)] == [bytes_of(path) for path in paths_of(here)]
        monkeypatch.setattr(shards_module, "MAX_SKIPPED_BYTES", 1024)
        assert bytes_of(videos.path(0)) == bytes_of(here.path(0))  # it begins at byte 1024
        with pytest.raises(UnreadableVideo, match=r"^the server of http.*tar answers no range requests: serve .*\.$"):
            bytes_of(videos.path(1))


def test_a_server_that_stumbles_is_asked_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbling(RangeHandler):
        def do_GET(self) -> None:
            count = next(calls)
            if count == 0:
                self.send_error(503)
            elif count == 1:
                self.connection.close()
            else:
                super().do_GET()

    calls = itertools.count()
    monkeypatch.setattr(shards_module, "RETRY_AFTER_S", (0.01, 0.01))
    path = paths_of(list_videos(copied))[0]
    with serving(copied, Stumbling) as server:
        assert bytes_of(path.replace(str(copied), server.url)) == bytes_of(path)
        assert next(calls) == 3
    with pytest.raises(UnreadableVideo, match=r"^http.* cannot be read \(.*\): check the address and the network\.$"):
        bytes_of(path.replace(str(copied), server.url))


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_of_a_cut_off_shard_only_what_is_lost_is_listed(copied: Path, tmp_path: Path) -> None:
    folder = copy_of(copied, tmp_path / "cut")
    videos = list_videos(folder)
    lost = [videos.path(4), videos.path(5)]
    member = parse_member(lost[0])
    assert member is not None
    whole = Path(member.shard).read_bytes()
    os.truncate(member.shard, member.offset + member.size // 2)
    loader = ClipLoader(ClipDataset(videos, SPEC, augment=PLAIN), 1, num_workers=0)
    shown = {path for batch in loader for path in batch["path"]}
    assert {problem.path for problem in loader.problems} == set(lost)
    assert all(re.fullmatch(r".*000001\.tar is cut off before .*: copy the shard again\.", one.reason) for one in
               loader.problems)  # fmt: skip
    assert shown <= set(paths_of(videos)) - set(lost)
    with serving(folder) as server:
        for path in lost:
            with pytest.raises(UnreadableVideo, match="is cut off before byte"):
                bytes_of(path.replace(str(folder), server.url))
    report = tmp_path / "report.jsonl"
    options: dict[str, Any] = {"decode": "index", "num_workers": 1, "report": report}
    assert [*check(str(folder), **options)][-1].unreadable == 2
    Path(member.shard).write_bytes(whole)
    assert [*check(str(folder), **options)][-1].unreadable == 0
    Path(member.shard).unlink()
    assert [*check(str(folder), **options | {"report": None})][-1].missing == 3


def test_an_index_of_other_shards_is_not_believed(copied: Path, tmp_path: Path) -> None:
    folder = copy_of(copied, tmp_path / "mixed")
    videos = list_videos(folder)
    (folder / "train-000000.tar").write_bytes((folder / "train-000002.tar").read_bytes())
    with pytest.raises(UnreadableVideo, match=r"has no file of \d+ bytes at byte \d+: its index is another shard's"):
        bytes_of(videos.path(1))
    (folder / "train-000001.tar").unlink()
    with pytest.raises(UnreadableVideo, match=r"000001\.tar cannot be read \(No such file .*\): check the path\.$"):
        open_video(videos.path(3))


def test_a_killed_run_goes_on_to_the_same_index(
    source: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Copies: x264 gives a byte more or less once in a hundred times.
    output = tmp_path / "killed"
    command = ["data", "shards", str(source), "--output", str(output), "--shard-size", "3", "--num-workers", "1"]
    add_video = one_shard.add_video

    def slowly(*args: Any) -> Any:
        time.sleep(0.1)
        return add_video(*args)

    with monkeypatch.context() as patch:
        patch.setattr(one_shard, "add_video", slowly)
        process = multiprocessing.get_context("fork").Process(target=main, args=(command,))
        process.start()
        while not (output / "train-000000.tar").exists():
            time.sleep(0.01)
        time.sleep(0.15)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not (output / "index.csv").exists() and not (output / "train-000002.tar").exists()
    with pytest.raises(RequestError, match=r"has shards but no index\.csv: `hiera-video data index .*` makes it"):
        list_videos(output)
    first = (output / "train-000000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert (output / "train-000000.tar").stat().st_mtime_ns == first
    for name in ("index.csv", "classes.txt", "report.json", "train-000001.tar", "train-000002.tar"):
        assert (output / name).read_bytes() == (copied / name).read_bytes(), name
    assert not [*output.rglob(".train*")]
    originals = [json.loads(line)["path"] for line in shard_texts(output)]
    assert originals == paths_of(list_videos(source))


def shard_texts(folder: Path) -> list[bytes]:
    members = [member for tar in sorted(folder.glob("*.tar")) for member in shards_module.members_of(str(tar))]
    return [
        Path(member.shard).read_bytes()[member.offset : member.end]
        for member in members
        if member.name.endswith(".json")
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shards", "nothing.csv", "--output", "{tmp}/o"], "there is no file, folder or card 'nothing.csv'; cards: "),
        (["shards", "{source}", "--output", "{copied}"], "copied0 was begun with shard_size 3, not 1GB: name another"),
        (["shards", "{source}", "--output", "{copied}", "--crf", "9", "--shard-size", "3"], "with crf 23, not 9: name"),
        (["shards", "{copied}", "--output", "{copied}", "--shard-size", "3"], "was begun with another list of videos"),
        (
            ["shards", "{source}", "--output", "{tmp}/o", "--shard-size", "1 brick"],
            "but is a number of videos (1000) or",
        ),
        (["shards", "{source}", "--output", "{tmp}/o", "--short-side", "0"], "short_side is 0, but is at least 16"),
        (
            ["shards", "{source}", "--output", "{tmp}/o", "--keyframe-interval", "0"],
            "keyframe_interval is 0, but is at",
        ),
        (["shards", "{source}", "--output", "{tmp}/o", "--crf", "52"], "crf is 52, but is from 0 (best) to 51"),
        (["shards", "{source}", "--output", "{tmp}/o", "--num-workers", "0"], "num_workers is 0, but is at least 1"),
        (["shards", "{source}", "--output", "{tmp}/tars"], "holds shards that `hiera-video data shards` did not make"),
        (["index", "{tmp}"], "has no .tar files: name the folder of the shards"),
        (["index", "{tmp}/tars"], "a.tar is no whole tar without compression"),
        (["shards"], "nothing to do: name a source (hiera-video data shards SOURCE)"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(
    argv: list[str],
    message: str,
    source: Path,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes((copied / "train-000000.tar").read_bytes()[:5000])
    filled = [word.format(tmp=tmp_path, source=source, copied=copied) for word in argv]
    try:
        code = main(["data", *filled])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1, said


def test_an_index_that_is_not_there_is_refused(copied: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        pytest.raises(RequestError, match=r"^http.*/index\.csv cannot be fetched .*404"),
    ):
        list_videos(f"{server.url}/index.csv")
    (tmp_path / "index.csv").write_text("path,label\na.mp4\n")
    with serving(tmp_path) as server, pytest.raises(RequestError, match=r"^http.*/index\.csv, line 2: found 'a\.mp4'"):
        list_videos(f"{server.url}/index.csv")
