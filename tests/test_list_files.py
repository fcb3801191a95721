"""List files as other tools write them, and folders with links: read rightly or refused, never guessed."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiera_video.data.lists.tables import HEADER_WORDS, header_of
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.errors import RequestError
from hiera_video.tasks.data.check import check

ROWS = [("a b/c.mp4", "zoom in"), ("d, e.mp4", "pan"), ("é.webm", "zoom in")]


def written(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding, "surrogateescape"))
    return path


def pairs(videos: VideoList, root: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(videos.path(i), root), videos.class_names(i)[0]) for i in range(len(videos))]


def table(header: list[str], rows: list[tuple[str, ...]], delimiter: str = ",", end: str = "\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return text.getvalue()


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    (
        "path,label",
        "video,label",
        "filename,class",
        "video_path,action",
        "path,label_id",
        "File Name,Class Name",
        "Video.Path,video.label",
        "# video,label",
        "relative_path,activity",
        "URL,target",
    ),
)
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_header_of_usual_names_is_understood(header: str, delimiter: str, tmp_path: Path) -> None:
    file = written(tmp_path / "list.csv", table(header.split(","), ROWS, delimiter))
    assert pairs(list_videos(file), tmp_path) == ROWS


@pytest.mark.parametrize("header", ["label,video", "split,class,filename", ",video,frames,class", "id,path,class,y"])
def test_columns_may_stand_in_any_order_beside_others(header: str, tmp_path: Path) -> None:
    places = {"label": 1, "class": 1, "video": 0, "filename": 0, "path": 0}
    rows = [tuple(row[places[name]] if name in places else "7" for name in header.split(",")) for row in ROWS]
    file = written(tmp_path / "list.csv", table(header.split(","), rows))
    assert pairs(list_videos(file), tmp_path) == ROWS


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("clip_uri,what", "line 1: found 'clip_uri,what', but expected a video with its extension, or the columns"),
        ("what", "line 1: found 'what', but expected a path and its label"),
        ("id,label", "line 1: found 'id,label', but expected the columns path,label"),
        ("video,notes", "line 1: found 'video,notes', but expected the columns path,label"),
        ("video,class,action", "expected one column of labels, not 'class' and 'action': name the right one label"),
        ("video,clip,label", "expected one column of paths, not 'video' and 'clip': name the right one path"),
        ("path,start_frame,end_frame,label", "expected the columns path,label or path,labels or path,start,end,label"),
        ("path,begin,label", "expected the columns path,label or"),
        ("youtube_id,class", "line 1: found 'youtube_id,class', but expected the columns label,youtube_id"),
        ("path label", "with commas or tabs between them"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(header: str, sentence: str, tmp_path: Path) -> None:
    values = ["a.mp4", "x", "1", "2"][: 1 + header.count(",")]
    row = " ".join(values) if " " in header else ",".join(values)
    if header.startswith("path label"):
        row = "a.mp4 x"
    with pytest.raises(RequestError, match=re.escape(sentence)):
        list_videos(written(tmp_path / "list.csv", f"{header}\n{row}\n{row}\n"))


def test_the_first_line_that_is_not_blank_is_the_header(tmp_path: Path) -> None:
    videos = list_videos(written(tmp_path / "l.csv", "\n \nvideo,label\n\na.mp4,x\n"))
    assert pairs(videos, tmp_path) == [("a.mp4", "x")]
    with pytest.raises(RequestError, match=r"l.csv, line 5: found 'a.mp4', but expected 2 fields"):
        list_videos(written(tmp_path / "l.csv", "\n \nvideo,label\n\na.mp4\n"))


def test_a_video_whose_name_is_that_of_a_column_is_no_header(tmp_path: Path) -> None:
    text = "path.mp4,label\nfile/video.mp4,class\n"
    rows = [("path.mp4", "label"), ("file/video.mp4", "class")]
    assert pairs(list_videos(written(tmp_path / "l.csv", text)), tmp_path) == rows


def test_folders_of_frames_and_names_without_extension_are_videos_where_they_are_there(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    file = written(tmp_path / "l.txt", "first run\nsecond jump\n")
    assert pairs(list_videos(file), tmp_path) == [("first", "run"), ("second", "jump")]


def test_segments_are_read_by_their_usual_names(tmp_path: Path) -> None:
    videos = list_videos(written(tmp_path / "l.csv", "video,start_time,end_time,class\na.mp4,1.5,3,x\na.mp4,4,,y\n"))
    assert (videos.starts.tolist(), videos.ends.tolist()) == ([1.5, 4.0], [3.0, float("inf")])


def test_a_column_of_splits_gives_the_split_that_is_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path / "l.csv", "path,label,split\na.mp4,x,train\nb.mp4,y,Validation\nc.mp4,x,train\n")
    assert pairs(list_videos(file), tmp_path) == [("a.mp4", "x"), ("c.mp4", "x")]
    assert pairs(list_videos(file, split="val"), tmp_path) == [("b.mp4", "y")]
    with pytest.raises(RequestError, match=r"lists no video .* of the split test"):
        list_videos(file, split="test")
    folds = written(tmp_path / "folds.csv", "path,label,split\na.mp4,x,1\nb.mp4,y,2\n")
    assert len(list_videos(folds)) == 2


# --- text -------------------------------------------------------------------------------------------------------------

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", ["video,label", ""])
def test_text_of_other_systems_is_read(encoding: str, end: str, header: str, tmp_path: Path) -> None:
    lines = [header, 'a b.mp4,"run, fast" ', '"d, e.mp4" , pan', "é.webm,zoom in"]
    text = "".join(f"{line}{end}" for line in lines if line)
    file = written(tmp_path / "list.csv", text, encoding)
    rows = pairs(list_videos(file), tmp_path)
    assert rows == [("a b.mp4", "run, fast"), ("d, e.mp4", "pan"), ("é.webm", "zoom in")]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a.mp4;run\nb.mp4;jump\n", [("a.mp4", "run"), ("b.mp4", "jump")]),
        ("my clip.mp4;run\nb c.mp4; jump\n", [("my clip.mp4", "run"), ("b c.mp4", "jump")]),
        ("my clip.mp4;0\nb c.mp4; 1\n", [("my clip.mp4", "0"), ("b c.mp4", "1")]),
        ('"a;b.mp4";run\nc.mp4;"jump"\n', [("a;b.mp4", "run"), ("c.mp4", "jump")]),
        ('12" vinyl.mp4,run\n"so" she said.mp4,jump\n', [('12" vinyl.mp4', "run"), ('"so" she said.mp4', "jump")]),
        ('path,label\n"a\nb.mp4",x\nc.mp4,y\n', [("a\nb.mp4", "x"), ("c.mp4", "y")]),
        ("path,label\na.mp4 , x \n b.mp4,y\n", [("a.mp4", "x"), ("b.mp4", "y")]),
        ('path,label\na.mp4, "run, fast"\n', [("a.mp4", "run, fast")]),
    ],
)
def test_semicolons_quotes_and_blanks_are_read(text: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    assert pairs(list_videos(written(tmp_path / "list.csv", text)), tmp_path) == rows


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"path,label\na.mp4,x\nb\0.mp4,y\n", r"list.csv, line 3: found 'b\x00.mp4,y', but expected text without zero"),
        (b"a.mp4 0\nb.mp4 \0 1\n", r"list.csv, line 2: found 'b.mp4 \x00 1', but expected text without zero bytes"),
        (b"\xff\xfea\0.\0m", "list.csv is no text: it begins as UTF-16 but is not (truncated data); save it as UTF-8"),
        (b'path,label\na.mp4,x\n"b.mp4,y\nc.mp4,z\n', "line 3: found '\"b.mp4,y', but expected fields with a"),
        (b'"b\n.mp4",y\n', "list.csv, line 1: found '\"b', but expected a path and its label"),
        (b"a.mp4 10 20 run\n", "a path and its label with a blank between them; with more fields, a first line that"),
        (b"sep=;\npath;label\na.mp4;x\n", "line 1: found 'sep=;', but expected a path and its label"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_with_file_and_line(data: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        list_videos(written(tmp_path / "list.csv", data))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_whose_file_is_missing_stays_in_the_list_and_is_counted(tmp_path: Path) -> None:
    videos = list_videos(written(tmp_path / "list.csv", "video,class\ngone.mp4,x\nlost/too.mp4,y\n"))
    assert pairs(videos, tmp_path) == [("gone.mp4", "x"), ("lost/too.mp4", "y")]
    total = [*check(str(tmp_path / "list.csv"), num_workers=1)][-1]
    assert (total.listed, total.missing) == (2, 2)
    assert total.error == "2 of 2 videos are missing or cannot be read whole"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("root/a/1.mp4", "elsewhere/2.mp4", "elsewhere/deep/3.mp4", "classes/b/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "a" / "more").symlink_to(elsewhere)
    (root / "b").symlink_to(tmp_path / "classes" / "b")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "itself").symlink_to(root / "a")
    (elsewhere / "deep" / "round").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "all").symlink_to(tmp_path)
    (root / "a" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    rows = [("a/1.mp4", "a"), ("a/gone.mp4", "a"), ("a/more/2.mp4", "a"), ("a/more/deep/3.mp4", "a"), ("b/4.mp4", "b")]
    assert sorted(pairs(list_videos(root), root)) == rows


def test_files_that_are_passed_over_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.mp4", "a/.DS_Store", "a/2.y4m", "b/3.mp4", "b/notes.txt", "b/4.y4m", "b/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO, logger="hiera_video"):
        assert len(list_videos(tmp_path)) == 2
    kinds = "2 .y4m, 1 hidden, 1 no extension, 1 .txt"
    assert caplog.messages == [f"{tmp_path}: 5 files are passed over as no videos ({kinds})"]


# --- any file ---------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(sorted(HEADER_WORDS)) | st.text("abcxyz_ ", min_size=1, max_size=8).filter(str.strip)
NAMES = st.text("ab é,;'\"#", min_size=1, max_size=6).map(lambda name: f"{name.strip() or 'x'}.mp4")
LABELS = st.text("run-é ", min_size=1, max_size=6).map(str.strip).filter(bool) | st.integers(0, 99).map(str)


@given(
    st.lists(WORDS, min_size=2, max_size=4),
    st.lists(st.tuples(NAMES, LABELS), min_size=1, max_size=4),
    st.sampled_from(",\t;|"),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_is_never_a_video_and_no_table_is_a_traceback(
    tmp_path: Path, header: list[str], rows: list[tuple[str, str]], delimiter: str, encoding: str, end: str
) -> None:
    full = [(*row, *["7"] * (len(header) - 2)) for row in rows]
    file = written(tmp_path / "list.csv", table(header, full, delimiter, end), encoding)
    try:
        videos = list_videos(file)
    except RequestError as error:
        assert "\n" not in str(error) and "list.csv" in str(error)
        return
    assert len(videos) == len(rows)
    assert not {videos.path(i) for i in range(len(videos))} & {str(tmp_path / word) for word in header}


@given(st.binary(max_size=60) | st.text("ab.mp4,; \t\n\r\"'0", max_size=40).map(str.encode))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_list_or_one_sentence(tmp_path: Path, data: bytes) -> None:
    file = written(tmp_path / "list.txt", data)
    try:
        assert len(list_videos(file)) > 0
    except RequestError as error:
        assert "list.txt" in str(error) and "\n" not in str(error)


def test_every_word_of_a_header_is_known_in_any_writing() -> None:
    header = header_of(["", '"Video Path"\t"Class-Name"'])
    assert header is not None and (header.line, header.columns) == (2, ["video_path", "class_name"])
