"""``hiera-video data prepare``: a made copy of Kinetics in which each fault is found; resumed after any end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from assets import FRONT_INDEX, H264, HEVC

from hiera_video.cli import main
from hiera_video.data.lists.video_list import list_videos
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.tasks.data import prepare as prepare_module

#: Sorted as they stand; as names of folders, without brackets, the last two would change places.
CLASSES = ["abseiling", "skiing (not slalom or crosscountry)", "skiing crosscountry"]
WRITTEN = ["train.csv", "val.csv", "test.csv", "left_out.csv", "kept_with_faults.csv", "report.json"]
#: The videos that are listed, in this order; "fine_b" twice.
TRAIN = ["fine_a", "missing", "broken", "partly", "short", "twin_of_a", "fine_b", "seen_in_val", "absent", "corrupt"]
TRAIN += ["fine_b"]


def name(word: str) -> str:
    return f"{word:-<11}_000003_000013.mp4"


def words(file: Path) -> list[str]:
    """The videos of a list, in its order."""
    with file.open(newline="") as lines:
        return [Path(row["path"]).name[:11].rstrip("-") for row in csv.DictReader(lines)]


def official(file: Path, videos: list[str], *, labelled: bool = True) -> None:
    """Labels take turns."""
    file.parent.mkdir(exist_ok=True)
    lines = ["label,youtube_id,time_start,time_end,split"]
    lines += [f"{CLASSES[i % 3]},{word:-<11},3,13,{file.stem}" for i, word in enumerate(videos)]
    file.write_text("".join((line if labelled else line.partition(",")[2]) + "\n" for line in lines))


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training videos lie flat, those of val in folders of classes. Fine ones have the same size, and a box at the end
    that makes each another content.
    """
    root = tmp_path_factory.mktemp("k400")
    base = H264.write(root)
    whole = base.read_bytes()
    base.unlink()

    def fine(folder: Path, word: str, content: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        box = struct.pack(">I4s11s", 19, b"free", (content or word).encode())
        (folder / name(word)).write_bytes(whole + box)

    official(root / "annotations/train.csv", TRAIN)
    official(root / "annotations/val.csv", ["fine_v", "missing_v", "fine_w"])
    official(root / "annotations/test.csv", ["fine_t", "seen_too"], labelled=False)
    for word in ("fine_a", "fine_b"):
        fine(root / "train", word)
    fine(root / "train", "twin_of_a", "fine_a")
    fine(root / "train", "seen_in_val", "fine_v")
    fine(root / "replacement/replacement_for_corrupted_k400", "absent")
    fine(root / "replacement/replacement_for_corrupted_k400", "corrupt")
    for word in ("broken", "corrupt"):
        (root / "train" / name(word)).write_text(f"{word} is no video\n" * 200)
    HEVC.write(root).rename(root / "train" / name("short"))
    partly = FRONT_INDEX.write(root).rename(root / "train" / name("partly"))
    data = partly.read_bytes()
    partly.write_bytes(data[: len(data) * 8 // 10].ljust(len(data), b"\0"))
    fine(root / "val" / CLASSES[0], "fine_v")
    fine(root / "val" / "skiing_crosscountry", "fine_w")
    fine(root / "test", "fine_t")
    fine(root / "test", "seen_too", "fine_v")
    return root


def run(root: Path, output: Path, *options: str) -> int:
    return main(["data", "prepare", str(root), "--output", str(output), "--num-workers", "1", *options])


@pytest.fixture(scope="module")
def made(kinetics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    output = tmp_path_factory.mktemp("lists") / "made"
    assert run(kinetics, output) == 1
    return output


@pytest.fixture
def again(made: Path, tmp_path: Path) -> Path:
    """A copy of what is known after that run."""
    return Path(shutil.copytree(made, tmp_path / "again"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of files that are opened as videos or hashed from here on."""
    seen: list[str] = []
    for owner, function in ((IsolatedReader, "open"), (prepare_module, "digest_of")):

        def spy(*args: str, real: object = getattr(owner, function), **more: object) -> object:
            seen.append(Path(args[-1]).name[:11].rstrip("-"))
            return real(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(owner, function, spy)
    yield seen


def test_each_fault_is_found_and_named(kinetics: Path, made: Path) -> None:
    with (made / "left_out.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["split"], Path(row["path"]).name[:11].rstrip("-"), row["kind"]) for row in rows] == [
        ("train", "missing", "missing"),
        ("train", "broken", "broken"),
        ("train", "twin_of_a", "duplicate"),
        ("train", "seen_in_val", "duplicate"),
        ("train", "fine_b", "duplicate"),
        ("val", "missing_v", "missing"),
        ("test", "seen_too", "duplicate"),
    ]
    twin = f"it has the content of {kinetics / 'train' / name('fine_a')}, which stays in train as {CLASSES[0]!r}"
    val = f"it has the content of {kinetics / 'val' / CLASSES[0] / name('fine_v')}, which stays in val as 'abseiling'"
    again = f"it is listed before, which stays in train as {CLASSES[0]!r}"
    assert rows[0]["detail"] == "there is no such file" and name("broken") in rows[1]["detail"]
    assert [rows[i]["detail"] for i in (2, 3, 4, 6)] == [twin, val, again, val]
    assert (rows[0]["label"], rows[6]["label"]) == (CLASSES[1], "")
    with (made / "kept_with_faults.csv").open(newline="") as lines:
        kept = [(Path(row["path"]).name[:5], row["kind"], row["detail"][:16]) for row in csv.DictReader(lines)]
    assert [one[:2] for one in kept] == [("partl", "partly broken"), ("short", "too short")]
    assert kept[1][2] == "it lasts 1.00 s,"


def test_manifests_are_read_back_in_the_order_of_the_list_and_of_the_classes(kinetics: Path, made: Path) -> None:
    usable = ["fine_a", "partly", "short", "fine_b", "absent", "corrupt"]
    assert words(made / "train.csv") == usable and words(made / "val.csv") == ["fine_v", "fine_w"]
    videos = list_videos(made / "train.csv")
    paths = [Path(videos.path(i)) for i in range(len(videos))]
    assert all(path.is_file() for path in paths) and videos.classes == CLASSES
    assert videos.labels.tolist() == [TRAIN.index(word) % 3 for word in usable]
    assert [path.parent.name for path in paths] == ["train"] * 4 + ["replacement_for_corrupted_k400"] * 2
    official = list_videos("kinetics400", root=kinetics)
    numbers = list_videos(made / "train.csv", root="/elsewhere", classes=official.classes).labels
    assert numbers.tolist() == [official.labels[TRAIN.index(word)] for word in usable]
    unlabelled = list_videos(made / "test.csv")
    assert words(made / "test.csv") == ["fine_t"] and unlabelled.labels.shape == (1, 0)


def test_counts_are_printed_beside_the_published_ones(
    kinetics: Path, again: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(kinetics, again) == 1
    out = capsys.readouterr().out
    assert "train       11 listed         6 usable          1 missing " in out
    assert [[word for word in line.split() if word.isdecimal()] for line in out.splitlines()] == [
        ["11", "6", "1", "1", "1", "1", "3", "246534", "240258"],
        ["3", "2", "1", "0", "0", "0", "0", "19906", "19881"],
        ["2", "1", "0", "0", "0", "0", "1", "39805", "38685"],
    ]
    assert "train: 397 classes have no usable video: air drumming, " in caplog.text
    report = json.loads((again / "report.json").read_text())
    assert [one["usable"] for one in report["splits"]] == [6, 2, 1]
    assert "abseiling" not in report["splits"][1]["absent_classes"]
    assert len(report["splits"][1]["absent_classes"]) == 398 and report["splits"][2]["absent_classes"] == []


def test_faults_that_are_kept_can_be_left_out_without_a_second_look(
    kinetics: Path, again: Path, opened: list[str]
) -> None:
    assert run(kinetics, again, "--leave-out", "short", "damaged") == 1 and opened == []
    assert words(again / "train.csv") == ["fine_a", "fine_b", "absent", "corrupt"]
    assert words(again / "left_out.csv")[:4] == ["missing", "broken", "partly", "short"]
    assert words(again / "kept_with_faults.csv") == []


def test_a_good_copy_is_exit_0(kinetics: Path, tmp_path: Path) -> None:
    official(tmp_path / "train.csv", ["fine_a", "twin_of_a", "short"])
    (tmp_path / "train").symlink_to(kinetics / "train")
    assert run(tmp_path, tmp_path / "lists", "--splits", "train") == 0
    assert words(tmp_path / "lists" / "train.csv") == ["fine_a", "short"]


def test_what_has_changed_is_looked_at_again_and_nothing_else(
    kinetics: Path, made: Path, again: Path, opened: list[str], tmp_path: Path
) -> None:
    """A video is gone, a line of hashes is half: no other is opened or hashed."""
    root = Path(shutil.copytree(kinetics, tmp_path / "k400"))
    for file in again.iterdir():
        if file.is_file():
            file.write_text(file.read_text().replace(str(kinetics), str(root)))
    hashes = (again / "hashes.jsonl").read_bytes()
    (again / "hashes.jsonl").write_bytes(hashes[:-20])
    assert run(root, again) == 1 and len(opened) == 1
    assert (again / "hashes.jsonl").read_bytes() == hashes
    for file in WRITTEN:
        assert (again / file).read_text() == (made / file).read_text().replace(str(kinetics), str(root))
    (root / "train" / name("fine_a")).unlink()
    assert run(root, again) == 1 and len(opened) == 1
    assert words(again / "train.csv")[:3] == ["partly", "short", "twin_of_a"]
    assert "fine_a" in words(again / "left_out.csv")


@pytest.mark.slow  # three starts; test_check resumes behind a half line
def test_killed_and_started_again_it_writes_the_same_bytes(kinetics: Path, made: Path, tmp_path: Path) -> None:
    """Opening is slowed down, so that the kill comes in the middle; the half line is made here."""
    again, report = tmp_path / "again", tmp_path / "again" / "check.jsonl"
    code = (
        "import sys, time; from hiera_video.data.reading.child_process import IsolatedReader as R; "
        "real = R.open; "
        "R.open = lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1]; "
        "from hiera_video.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "data", "prepare", kinetics, "--output", again, "--num-workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    running = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, env=environment)
    while not report.exists() or report.read_bytes().count(b"\n") < 3:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 3 <= report.read_bytes().count(b"\n") < (made / "check.jsonl").read_bytes().count(b"\n")
    assert not (again / "train.csv").exists()
    report.write_bytes(report.read_bytes() + b'{"path": "')
    (again / ".train.csv.123").write_text("path,lab")
    assert run(kinetics, again) == 1
    same(again, made)


def test_interrupted_while_it_compares_it_goes_on_there(
    kinetics: Path, made: Path, again: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("hashes.jsonl", *WRITTEN):
        (again / file).unlink()
    real = prepare_module.digest_of

    def interrupted(path: str) -> str:
        if len(opened) == 3:
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "digest_of", interrupted)
        assert run(kinetics, again) == 130
    assert len(opened) == 3 and not (again / "train.csv").exists()
    assert run(kinetics, again) == 1 and len(opened) == len(set(opened)) == 10
    same(again, made)


def test_a_file_that_cannot_be_hashed_is_compared_with_none(
    kinetics: Path, again: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (again / "hashes.jsonl").unlink()
    monkeypatch.setattr(prepare_module, "digest_of", lambda path: None)
    assert run(kinetics, again) == 1 and (again / "hashes.jsonl").read_text() == ""
    assert f"{name('twin_of_a')} cannot be read to its end and is compared with none" in caplog.text
    assert "twin_of_a" in words(again / "train.csv") and words(again / "train.csv").count("fine_b") == 1


def test_files_have_the_permissions_that_the_umask_gives(kinetics: Path, tmp_path: Path) -> None:
    official(tmp_path / "train.csv", ["fine_a", "twin_of_a"])
    (tmp_path / "train").symlink_to(kinetics / "train")
    before = os.umask(0o027)
    try:
        assert run(tmp_path, tmp_path / "lists", "--splits", "train") == 0
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "lists").iterdir()}
    assert set(WRITTEN) - {"val.csv", "test.csv"} < modes.keys() and set(modes.values()) == {"0o640"}
    assert (tmp_path / "lists").stat().st_mode & 0o777 == 0o750


def same(again: Path, made: Path) -> None:
    """The same files, and the same bytes in those that are results."""
    assert sorted(file.name for file in again.iterdir()) == sorted(file.name for file in made.iterdir())
    for file in WRITTEN:
        assert (again / file).read_bytes() == (made / file).read_bytes(), file


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{tmp}/nowhere", "--output", "{tmp}/x"], "there is no folder {tmp}/nowhere: root holds annotations/"),
        (["{tmp}", "--output", "{tmp}/x"], "{tmp} has no annotations of kinetics400, split train: expected annotat"),
        (["{root}", "--output", "{root}/annotations"], "{root}/annotations is where official lists lie"),
        (
            ["{root}", "--output", "{root}"],
            "output {root} is where official lists lie, of the same names: name another",
        ),
        (["{root}", "--output", "{tmp}/x", "--num-workers", "0"], "num_workers is 0, but is at least 1"),
        (["{root}", "--output", "{tmp}/x", "--splits", "dev"], "splits is 'dev', but can be one of train, val, test"),
        (["{root}", "--output", "{tmp}/file/x"], "{tmp}/file/x cannot be made: Not a directory"),
        (
            ["{root}", "--output", "{tmp}/foreign"],
            "{tmp}/foreign/hashes.jsonl, line 1: found 'my notes', but expected a line that data prepare wrote",
        ),
        (["{root}"], "--output is missing: see hiera-video data prepare --help"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_2(
    words: list[str], sentence: str, kinetics: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    shutil.copy(made / "check.jsonl", tmp_path / "foreign")
    (tmp_path / "foreign" / "hashes.jsonl").write_text("my notes\n")
    try:
        code = main(["data", "prepare", *(word.format(tmp=tmp_path, root=kinetics) for word in words)])
    except SystemExit as stop:
        code = int(str(stop.code))
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hiera-video: ")]
    assert code == 2 and len(err) == 1 and sentence.format(tmp=tmp_path, root=kinetics) in err[0]
