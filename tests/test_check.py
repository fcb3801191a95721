"""``hiera-video data check``: what is missing, broken or short, per class; parallel, and resumed after any end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from assets import FRONT_INDEX, H264, HEVC, LONG_MKV, cut_off

from hiera_video.cli import main
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.tasks.data.check import ClassCount, check, check_file

FIELDS = ["path", "class", "problem", "reason", "duration", "frames", "height", "width", "size", "decode"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fine.mp4 3 s, short.mp4 1 s, cut.mkv half of its 3 s, no_end.mp4 whose last frames are zeros."""
    folder = tmp_path_factory.mktemp("made")
    H264.write(folder).rename(folder / "fine.mp4")
    HEVC.write(folder).rename(folder / "short.mp4")
    whole = LONG_MKV.write(folder)
    cut_off(whole, 0.5).rename(folder / "cut.mkv")
    whole.unlink()
    no_end = FRONT_INDEX.write(folder).rename(folder / "no_end.mp4")
    data = no_end.read_bytes()
    no_end.write_bytes(data[: len(data) * 8 // 10].ljust(len(data), b"\0"))
    return folder


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    """list.csv of class a: fine, short; b: cut, text, missing; c: fine."""
    names = {"a": ["fine.mp4", "short.mp4"], "b": ["cut.mkv", "text.mp4", "missing.mp4"], "c": ["no_end.mp4"]}
    for name in os.listdir(made):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "text.mp4").write_text("this is no video\n" * 200)
    lines = [f"{name},{label}\n" for label, group in names.items() for name in group]
    (tmp_path / "list.csv").write_text("".join(lines))
    return tmp_path


def in_new_process(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hiera_video.cli", "data", "check", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def problems(report: Path) -> dict[str, str | None]:
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return {Path(line["path"]).name: line["problem"] for line in lines}


def test_a_run_counts_each_class_and_reports_each_file(dataset: Path) -> None:
    report = dataset / "report.jsonl"
    done = in_new_process(dataset / "list.csv", "--report", report, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == ["class", "listed", "fine", "missing", "unreadable", "damaged", "short", "error"]
    assert [[row[name] for name in list(row)[:7]] for row in rows] == [
        ["a", "2", "1", "0", "0", "0", "1"],
        ["b", "3", "0", "1", "1", "1", "0"],
        ["c", "1", "0", "0", "0", "1", "0"],
        ["all", "6", "1", "1", "1", "2", "1"],
    ]
    assert rows[0]["error"] == "" and rows[3]["error"] == "4 of 6 videos are missing or cannot be read whole"
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "missing: " in done.stderr and "text.mp4" in done.stderr
    lines = {Path(line["path"]).name: line for line in map(json.loads, report.read_text().splitlines())}
    assert all(list(line) == FIELDS for line in lines.values()) and len(lines) == 6
    fine = lines["fine.mp4"]
    expected = [str(dataset / "fine.mp4"), "a", None, None, 3.0, 90, 48, 64, fine["size"], "ends"]
    assert [fine[name] for name in FIELDS] == expected
    assert lines["short.mp4"]["reason"] == "it lasts 1.00 s, a clip 2.13 s"
    assert "and 3.00 s cannot be decoded" in lines["no_end.mp4"]["reason"]


def test_all_there_is_exit_0_and_short_is_no_error(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "good.txt").write_text("fine.mp4 0\nshort.mp4 1\n")
    assert main(["data", "check", str(dataset / "good.txt")]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "class listed fine missing unreadable damaged short",
        "0 1 1 0 0 0 0",
        "1 1 0 0 0 0 1",
        "all 2 1 0 0 0 1",
    ]


def test_a_second_run_reads_only_what_is_new_or_was_bad_and_has_changed(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, opened = dataset / "report.jsonl", []
    first = list(check(str(dataset / "list.csv"), report=report))
    real = IsolatedReader.open
    monkeypatch.setattr(
        IsolatedReader, "open", lambda self, path, **more: (opened.append(Path(path).name), real(self, path, **more))[1]
    )
    assert list(check(str(dataset / "list.csv"), report=report)) == first and opened == []
    (dataset / "missing.mp4").symlink_to(dataset / "fine.mp4")
    (dataset / "text.mp4").unlink()
    (dataset / "text.mp4").symlink_to(dataset / "short.mp4")
    with (dataset / "list.csv").open("a") as file:
        file.write("another.mp4,c\n")
    (dataset / "another.mp4").symlink_to(dataset / "fine.mp4")
    counts = list(check(str(dataset / "list.csv"), report=report))
    assert sorted(opened) == ["another.mp4", "missing.mp4", "text.mp4"]
    assert counts[-1] == ClassCount("all", listed=7, fine=3, missing=0, unreadable=0, damaged=2, short=2)


def test_a_closer_look_is_not_skipped(dataset: Path) -> None:
    (dataset / "one.txt").write_text("no_end.mp4 0\n")
    report = dataset / "report.jsonl"
    seen = [
        list(check(str(dataset / "one.txt"), report=report, decode=decode))[-1] for decode in ("index", "all", "index")
    ]
    assert [(count.fine, count.damaged) for count in seen] == [(1, 0), (0, 1), (0, 1)]
    assert len(report.read_text().splitlines()) == 2


def test_a_killed_run_is_resumed_behind_its_half_line(dataset: Path, tmp_path: Path) -> None:
    """Opening is slowed down, so that the run is killed in the middle; the half line is made here."""
    report = tmp_path / "report.jsonl"
    (dataset / "many.txt").write_text("".join(f"{number}.mp4 0\n" for number in range(8)))
    for number in range(8):
        (dataset / f"{number}.mp4").symlink_to(dataset / "fine.mp4")
    code = (
        "import time, sys; from hiera_video.data.reading.child_process import IsolatedReader as R; real = R.open; "
        "R.open = lambda *a, **k: (time.sleep(0.3), real(*a, **k))[1]; "
        "from hiera_video.cli import main; main(sys.argv[1:])"
    )
    argv = ["data", "check", str(dataset / "many.txt"), "--report", str(report), "--num-workers", "1"]
    run = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.DEVNULL)
    while not report.exists() or report.read_bytes().count(b"\n") < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    whole = report.read_bytes()
    assert 2 <= whole.count(b"\n") < 8
    report.write_bytes(whole + whole[:40])
    done = in_new_process(*argv[2:], "--format", "json")
    assert (done.returncode, json.loads(done.stdout)[-1]["fine"]) == (0, 8)
    assert report.read_bytes().startswith(whole)
    assert problems(report) == {f"{number}.mp4": None for number in range(8)} and report.read_bytes().count(b"\n") == 8


@pytest.mark.parametrize("text", ["fine.mp4,a\n", "my notes", '{"path": "x"}\n', "[]\n"])
def test_a_file_that_is_no_report_is_refused_and_left_alone(text: str, dataset: Path) -> None:
    notes = dataset / "notes.txt"
    notes.write_text(text)
    done = in_new_process(dataset / "list.csv", "--report", notes)
    assert done.returncode == 2 and "name another file" in done.stderr and done.stderr.count("\n") == 1
    assert notes.read_text() == text


def test_segments_count_by_their_own_length(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["path,start,end,label", "fine.mp4,0,,long", "fine.mp4,2,3,cut", "fine.mp4,5,9,beyond", "gone.mp4,0,9,gone"]
    (dataset / "segments.csv").write_text("\n".join(lines))
    counts = {count.name: count for count in check(str(dataset / "segments.csv"))}
    assert (counts["long"].fine, counts["cut"].short, counts["beyond"].unreadable, counts["gone"].missing) == (
        1,
        1,
        1,
        1,
    )
    assert f"{dataset / 'fine.mp4'} ends before the segment from 5 to 9 s" in caplog.messages


def test_a_video_of_several_classes_counts_in_each_and_once_in_all(dataset: Path) -> None:
    (dataset / "several.csv").write_text("path,labels\nfine.mp4,x;y\nshort.mp4,y\ncut.mkv,\n")
    counts = {
        count.name: (count.listed, count.fine, count.short, count.damaged)
        for count in check(str(dataset / "several.csv"))
    }
    assert counts == {"x": (1, 1, 0, 0), "y": (2, 1, 1, 0), "all": (3, 1, 1, 1)}


def test_a_card_says_how_long_a_clip_is(dataset: Path) -> None:
    """HMDB51's stride is 2: 1.07 s."""
    splits = dataset / "testTrainMulti_7030_splits"
    splits.mkdir()
    for number in range(51):
        (splits / f"c{number:02d}_test_split1.txt").write_text("a.avi 1\n" if number == 7 else "a.avi 0\n")
    (dataset / "c07").mkdir()
    (dataset / "c07/a.avi").symlink_to(dataset / "short.mp4")
    counts = list(check("hmdb51", root=dataset))
    assert len(counts) == 52 and (counts[7].name, counts[7].short) == ("c07", 1)
    (dataset / "c07/a.avi").unlink()
    (dataset / "c07/a.avi").symlink_to(dataset / "fine.mp4")
    assert list(check("hmdb51", root=dataset))[7].fine == 1


def test_a_decoder_that_exceeds_its_time_is_listed_and_the_run_goes_on(dataset: Path) -> None:
    with IsolatedReader(time_limit=60) as reader:
        reader.open(str(dataset / "fine.mp4")).close()
        assert reader._child is not None
        os.kill(reader._child.process.pid, signal.SIGSTOP)
        reader.time_limit = 0.2
        checked = check_file(str(dataset / "fine.mp4"), "a", reader, "ends", 2.0)
        assert checked.problem == "unreadable" and "longer than" in str(checked.reason)
        reader.time_limit = 60
        assert check_file(str(dataset / "fine.mp4"), "a", reader, "ends", 2.0).problem is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--decode", "some"), "--decode is 'some', but must be one of index, ends, all"),
        (("--num-workers", "0"), "num_workers is 0, but is at least 1"),
        (("--time-limit", "0"), "time_limit is 0.0, but is a number of seconds above 0"),
        (("--report", "/nowhere/at/all.jsonl"), "cannot be written: there is no folder /nowhere/at"),
        (("--spilt", "val"), "there is no option --spilt; did you mean --split?"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_2(
    options: tuple[str, ...], sentence: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["data", "check", str(dataset / "list.csv"), *options])
    except SystemExit as stop:
        code = int(str(stop.code))
    err = capsys.readouterr().err
    assert code == 2 and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["data"], "there is no job 'data'; did you mean data check?"),
        (["data", "chekc", "x.csv"], "there is no job 'data chekc'; did you mean data check?"),
        (["dtaa", "check"], "there is no job 'dtaa check'; did you mean data check?"),
        (["data", "check"], "nothing to do: name a source (hiera-video data check SOURCE)"),
        (["clasify", "x.mp4"], "there is no job 'clasify'; did you mean classify?"),
    ],
)
def test_a_job_of_two_words_is_found_and_its_misspellings_are_told(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert (code, capsys.readouterr().err) == (2, f"hiera-video: {answer}\n")


def test_help_of_the_first_word_alone_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0 and "data check" in capsys.readouterr().out
