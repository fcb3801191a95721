"""Annotation files as the datasets ship them, read from small copies of the real layouts; wrong ones name the line."""

from __future__ import annotations

import json
import logging
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hiera_video import files
from hiera_video.data.lists.cards import load_card
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.errors import RequestError

HEADER = "label,youtube_id,time_start,time_end,split\n"
#: Two classes whose folders swap when brackets are left out, and one with a quote; sorted as they are numbered.
SKIING = ["massaging person's head", "skiing (not slalom or crosscountry)", "skiing crosscountry"]
SKIING_NUMBERS = [196, 308, 309]
IDENTITIES = ["-0_JuKvBQRA", "__-aB9xYz01", "a-_bcdefghi"]
IDENTITIES = [identity[:11] for identity in IDENTITIES]
NAMES = [f"{identity}_{start:06d}_{start + 10:06d}.mp4" for start, identity in enumerate(IDENTITIES)]


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def kinetics_csv(labels: list[str], split: str = "train") -> str:
    rows = zip(labels, IDENTITIES * (1 + len(labels) // 3), strict=False)
    return HEADER + "".join(f"{label},{name},{i % 3},{i % 3 + 10},{split}\n" for i, (label, name) in enumerate(rows))


def listed(videos: VideoList, root: Path) -> list[tuple[str, str]]:
    """(path below the root, class) of each video."""
    numbers = range(len(videos))
    return [(os.path.relpath(videos.path(i), root), videos.classes[int(videos.label(i))]) for i in numbers]


# --- the list itself --------------------------------------------------------------------------------------------------


def test_a_list_gives_back_what_it_was_made_of() -> None:
    paths = ["a b.mp4", "é/#!.mp4", "\udcff.mp4", "http://host/x.mp4"]
    videos = VideoList.make(paths, [1, 0, 1, -1], ["x", "y"], starts=[0, 1, 0, 0], ends=[9, 2, 1, 1])
    assert [videos.path(i) for i in range(4)] == paths and videos.path(-1) == paths[-1]
    assert [videos.label(i) for i in range(4)] == [1, 0, 1, -1]
    part = pickle.loads(pickle.dumps(videos)).subset([2, 1])
    assert (len(part), part.path(0), part.classes) == (2, "\udcff.mp4", ["x", "y"])
    assert (part.labels.tolist(), part.starts.tolist(), part.ends.tolist()) == ([1, 0], [0, 1], [1, 2])
    assert (
        len(videos.subset(videos.labels == 1)) == 2
        and len(videos.subset([])) == 0
        and len(videos.subset(np.s_[1:])) == 3
    )


def test_whole_videos_run_from_0_to_infinity_and_several_labels_are_zeros_and_ones() -> None:
    videos = VideoList.make(["a", "b"], [[1, 0, 1], [0, 0, 0]], ["x", "y", "z"])
    assert (videos.starts.tolist(), videos.ends.tolist()) == ([0, 0], [np.inf, np.inf])
    assert np.array_equal(videos.label(0), np.array([1, 0, 1], dtype=np.float32)) and videos.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "more", "sentence"),
    [
        ([0], {}, r"labels have shape \(1,\), but 2 videos and 2 classes need \(2,\) or \(2, 2\)"),
        ([0, 2], {}, "labels are from 0 to 2, but must be from -1 to 1"),
        ([0, 1], {"starts": [0, 5], "ends": [1, 5]}, "0 <= start < end"),
    ],
)
def test_a_list_that_does_not_fit_together_is_refused(labels: list[int], more: dict, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        VideoList.make(["a", "b"], labels, ["x", "y"], **more)


def test_100_000_entries_pickle_to_and_occupy_what_flat_arrays_need() -> None:
    paths = [f"train/abseiling/{number:011d}_000000_000010.mp4" for number in range(100_000)]
    videos = VideoList.make(paths, np.zeros(100_000), ["abseiling"])
    needed = sum(map(len, paths)) + 4 * 8 * 100_000
    stored = pickle.dumps(videos, protocol=pickle.HIGHEST_PROTOCOL)
    tracemalloc.start()
    copy = pickle.loads(stored)
    occupied = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert copy.path(99_999) == paths[-1]
    assert (len(stored) < needed + 2_000, occupied < needed + 10_000) == (True, True)


# --- Kinetics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders",
    [
        SKIING,
        [label.replace(" ", "_") for label in SKIING],
        ["massaging persons head", "skiing not slalom or crosscountry", "skiing crosscountry"],
        ["", "", ""],
    ],
    ids=["label as it is", "underscores", "without brackets and quotes", "flat"],
)
def test_kinetics_400_from_its_csv_and_folders_of_any_naming(folders: list[str], tmp_path: Path) -> None:
    write(
        tmp_path / "annotations/train.csv", kinetics_csv(SKIING).replace("split", "split,is_cc").replace("n\n", "n,0\n")
    )
    places = [os.path.join("train", folder, name) for folder, name in zip(folders, NAMES, strict=True)]
    for place in places:
        write(tmp_path / place)
    videos = list_videos("kinetics400", root=tmp_path)
    assert listed(videos, tmp_path) == list(zip(places, SKIING, strict=True))
    assert videos.labels.tolist() == SKIING_NUMBERS and len(videos.classes) == 400


def test_kinetics_400_names_are_sorted_originals_with_skiing_in_its_place(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", kinetics_csv(SKIING, "val"))
    classes = list_videos("kinetics400", root=tmp_path, split="val").classes
    assert classes == sorted(classes) and [classes[number] for number in SKIING_NUMBERS] == SKIING


def test_class_folders_alone_do_not_swap_where_the_card_knows_the_labels(tmp_path: Path) -> None:
    for folder in ("skiing crosscountry", "skiing_not_slalom_or_crosscountry"):
        write(tmp_path / "val" / folder / NAMES[0])
    videos = list_videos("kinetics400", root=tmp_path, split="val")
    assert [(Path(videos.path(i)).parent.name, videos.label(i)) for i in range(2)] == [
        ("skiing crosscountry", 309),
        ("skiing_not_slalom_or_crosscountry", 308),
    ]


def test_a_replacement_counts_where_the_main_file_is_absent_and_a_missing_file_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "annotations/train.csv", kinetics_csv(SKIING))
    write(tmp_path / "train" / NAMES[0])
    for name in NAMES[:2]:
        write(tmp_path / "replacement/replacement_for_corrupted_k400" / name)
    assert [path for path, _ in listed(list_videos("kinetics400", root=tmp_path), tmp_path)] == [
        f"train/{NAMES[0]}",
        f"replacement/replacement_for_corrupted_k400/{NAMES[1]}",
        f"train/{NAMES[2]}",
    ]


@pytest.mark.parametrize(("name", "count"), [("kinetics600", 600), ("kinetics700", 700)])
def test_kinetics_600_and_700_take_their_classes_from_the_training_csv(name: str, count: int, tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(count)]
    write(tmp_path / "annotations/train.csv", kinetics_csv(labels))
    write(tmp_path / "annotations/val.csv", kinetics_csv(["class 599", "class 10"], "validate"))
    write(tmp_path / "val/class 10" / NAMES[1])
    videos = list_videos(name, root=tmp_path, split="val")
    assert videos.classes == sorted(labels)
    assert listed(videos, tmp_path) == [(f"val/{NAMES[0]}", "class 599"), (f"val/class 10/{NAMES[1]}", "class 10")]
    write(tmp_path / "annotations/train.csv", kinetics_csv(labels[1:]))
    with pytest.raises(RequestError, match=f"has {count - 1} classes, but {name} has {count}"):
        list_videos(name, root=tmp_path)


def test_a_test_list_without_labels_is_read_where_the_split_allows_it_alone(tmp_path: Path) -> None:
    file = write(
        tmp_path / "annotations/test.csv", f"youtube_id,time_start,time_end,split\n{IDENTITIES[0]},3,13,test\n"
    )
    videos = list_videos("kinetics400", root=tmp_path, split="test")
    assert (videos.labels.tolist(), Path(videos.path(0)).name) == ([-1], f"{IDENTITIES[0]}_000003_000013.mp4")
    with pytest.raises(RequestError, match=r"test.csv, line 1: .*expected a column label: only a test split's list"):
        list_videos(file)


def test_a_csv_with_several_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    text = kinetics_csv(["a", "b"]) + kinetics_csv(["c"], "validate").removeprefix(HEADER)
    videos = list_videos(write(tmp_path / "all.csv", text), split="val")
    assert (len(videos), videos.classes) == (1, ["c"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a,shortid,0,10,train", "line 3: found 'shortid', but expected a youtube_id of 11"),
        ("a,#NAME?------,0,10,train", "line 3: found '#NAME"),
        (f"a,{IDENTITIES[0]},10,10,train", "line 3: found '10,10', but expected time_start and time_end in whole sec"),
        (f"a,{IDENTITIES[0]},0,1e1,train", "line 3: found '0,1e1'"),
        (f"a,{IDENTITIES[0]},0,10", "line 3: .*expected 5 fields: label,youtube_id"),
        (f",{IDENTITIES[0]},0,10,train", "line 3: .*expected a label"),
    ],
)
def test_a_wrong_line_of_a_kinetics_csv_is_named(line: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"k.csv, {sentence}"):
        list_videos(write(tmp_path / "k.csv", kinetics_csv(["a"]) + line + "\n"))


def test_a_label_that_the_card_does_not_have_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", kinetics_csv(["abseiling", "abseilling"]))
    with pytest.raises(
        RequestError,
        match=r"train.csv, line 3: found 'abseilling', but expected one of 400 classes, such as 'abseiling'",
    ):
        list_videos("kinetics400", root=tmp_path)


def test_files_are_found_by_listing_folders_not_by_asking_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:011d}" for number in range(1000)]
    write(tmp_path / "k.csv", HEADER + "".join(f"a,{name},0,10,train\n" for name in names))
    for name in names:
        (tmp_path / f"{name}_000000_000010.mp4").touch()
    asked: list[object] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: (asked.append(args), real(*args, **kwargs))[1])
    assert len(list_videos(tmp_path / "k.csv")) == 1000 and len(asked) < 20


# --- lists and tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paths", "labels", "classes"),
    [
        ("a b/c.mp4 1\nd,e.mp4 0\n", ["a b/c.mp4", "d,e.mp4"], [1, 0], ["0", "1"]),
        ("a b/c.mp4,1\r\nd,e.mp4,0\r\n", ["a b/c.mp4", "d,e.mp4"], [1, 0], ["0", "1"]),
        ("a b, c.mp4\t1\n\nd.mp4\t0", ["a b, c.mp4", "d.mp4"], [1, 0], ["0", "1"]),
        ('"a, b.mp4",1\n"say ""x"".mp4",0\n', ["a, b.mp4", 'say "x".mp4'], [1, 0], ["0", "1"]),
        ('"a b.mp4" 2\nc.mp4 0\n', ["a b.mp4", "c.mp4"], [2, 0], ["0", "1", "2"]),
        ("\ufeffa b.mp4,zoom in\nc.mp4,pan\n", ["a b.mp4", "c.mp4"], [1, 0], ["pan", "zoom in"]),
        ("a b.mp4 pan\nc, d.mp4 tilt\n", ["a b.mp4", "c, d.mp4"], [0, 1], ["pan", "tilt"]),
        ("path,label\n#1.mp4,pan\n", ["#1.mp4"], [0], ["pan"]),
        ('file,label,crf\n"a, b.mp4","run, fast",23\n', ["a, b.mp4"], [0], ["run, fast"]),
        ("\udcff.mp4 0\n", ["\udcff.mp4"], [0], ["0"]),
    ],
)
def test_a_list_is_split_at_the_last_separator_that_the_file_shows(
    text: str, paths: list[str], labels: list[int], classes: list[str], tmp_path: Path
) -> None:
    videos = list_videos(write(tmp_path / "list.csv", text))
    assert [os.path.relpath(videos.path(i), tmp_path) for i in range(len(videos))] == paths
    assert (videos.labels.tolist(), videos.classes) == (labels, classes)


def test_paths_are_relative_to_the_root_unless_absolute_or_addresses(tmp_path: Path) -> None:
    file = write(tmp_path / "lists/l.txt", "a.mp4 0\n/data/b.mp4 0\nhttps://host/c.mp4 0\n")
    videos = list_videos(file, root="videos")
    assert [videos.path(i) for i in range(3)] == ["videos/a.mp4", "/data/b.mp4", "https://host/c.mp4"]


def test_given_classes_decide_the_order_and_are_matched_loosely(tmp_path: Path) -> None:
    file = write(tmp_path / "l.csv", "a.mp4,skiing not slalom or crosscountry\nb.mp4,skiing_crosscountry\n")
    assert list_videos(file, classes=[SKIING[2], SKIING[1]]).labels.tolist() == [1, 0]


def test_segments_have_begin_and_end_in_seconds(tmp_path: Path) -> None:
    text = "path,start,end,label\nfilm.mkv,0,2.5,run\nfilm.mkv,2.5,4,jump\nfilm.mkv,60,,run\n"
    videos = list_videos(write(tmp_path / "s.csv", text))
    assert (videos.starts.tolist(), videos.ends.tolist()) == ([0, 2.5, 60], [2.5, 4, np.inf])
    assert (videos.labels.tolist(), videos.path(2)) == ([1, 0, 1], str(tmp_path / "film.mkv"))


@pytest.mark.parametrize(
    "text", ["a.mp4,run;jump\nb.mp4,swim\nc.mp4,run;run\n", "path,labels\na.mp4,run;jump\nb.mp4,swim\nc.mp4,run\n"]
)
def test_a_video_may_have_several_labels_by_name(text: str, tmp_path: Path) -> None:
    videos = list_videos(write(tmp_path / "m.csv", text))
    assert videos.classes == ["jump", "run", "swim"]
    assert videos.labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_a_video_may_have_several_labels_by_number_or_none(tmp_path: Path) -> None:
    assert list_videos(write(tmp_path / "m.txt", "a b.mp4 3;1\nb.mp4 0\n")).labels.tolist() == [
        [0, 1, 0, 1],
        [1, 0, 0, 0],
    ]
    assert list_videos(write(tmp_path / "m.csv", "path,labels\na.mp4,1\nb.mp4,\n")).labels.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a.mp4 0\nb.mp4\n", "line 2: found 'b.mp4', but expected a path and its label with a blank between"),
        ("a.mp4\t0\nb.mp4\t1\nc.mp4 2\n", "line 3: found 'c.mp4 2', but expected a path and its label with a tab"),
        ("a.mp4,y\nb.mp4,0\nc.mp4,x\n", "line 2: found '0', but expected a name, as other lines have"),
        ("a.mp4,0\nb.mp4,1\nc.mp4,2x\n", "line 3: found '2x', but expected a number, as other lines have"),
        ("a.mp4 0\nb.mp4 99999999999\n", "line 2: found '99999999999', but expected a number from 0 to 99999"),
        ("path,start,end,label\na.mp4,0,2,x\na.mp4,5,4,x\n", "line 3: found '5,4', but expected start and end in sec"),
        ("path,start,end,label\na.mp4,0,soon,x\n", "line 2: found '0,soon'"),
        ("path,start,end,label\na.mp4,nan,2,x\n", "line 2: found 'nan,2'"),
        ("path,start,label\na.mp4,0,x\n", "line 1: .*expected the columns path,label or"),
        ("path,label\na.mp4,x\nb.mp4,y,z\n", "line 3: found 'b.mp4,y,z', but expected 2 fields: path,label"),
        ("path,label\na.mp4,\n", "line 2: .*expected a path and a label"),
        ('path,label\n"a.mp4,x\n' + "y" * 140_000, "line 2: found '\"a.mp4,x', but expected .*quotes in pairs"),
        ("\n", "is empty: expected one line for each video"),
    ],
)
def test_a_wrong_list_names_the_line_and_what_was_expected(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"list.txt,? {sentence}") as caught:
        list_videos(write(tmp_path / "list.txt", text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_labels_beyond_the_given_classes_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "l.txt", "a.mp4 0\nb.mp4 2\n")
    with pytest.raises(RequestError, match=r"line 2: found '2', but expected a number from 0 to 1"):
        list_videos(file, classes=["x", "y"])


# --- class folders ----------------------------------------------------------------------------------------------------


def test_class_folders_are_sorted_and_hidden_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b c/2.MP4", "b c/deep/1.webm", "a/x.avi", "a/notes.txt", "a/.hidden.mp4", ".git/y.mp4", "top.mp4"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    videos = list_videos(tmp_path)
    assert listed(videos, tmp_path) == [("a/x.avi", "a"), ("b c/2.MP4", "b c"), ("b c/deep/1.webm", "b c")]
    assert videos.classes == ["a", "b c", "empty"]


def test_folders_of_splits_share_the_classes_of_train(tmp_path: Path) -> None:
    for name in ("train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4"):
        write(tmp_path / name)
    videos = list_videos(tmp_path, split="val")
    assert listed(videos, tmp_path) == [("val/b/3.mp4", "b")] and videos.classes == ["a", "b"]
    with pytest.raises(RequestError, match="has no split 'test'; it has train, val"):
        list_videos(tmp_path, split="test")
    write(tmp_path / "val/c/4.mp4")
    with pytest.raises(RequestError, match="val: found 'c', but expected one of 2 classes"):
        list_videos(tmp_path, split="val")


def test_a_source_that_is_not_there_is_told_the_nearest_card(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no file, folder or card 'ufc101'; did you mean ucf101\?"):
        list_videos("ufc101")
    with pytest.raises(RequestError, match="has no folders in it: expected one for each class"):
        list_videos(tmp_path)
    with pytest.raises(RequestError, match="where is ucf101\\? Name its folder as root"):
        list_videos("ucf101")


# --- Something-Something v2, UCF101, HMDB51, camera motion ------------------------------------------------------------


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    classes = ["Holding something", "Pushing something from left to right", *(f"Doing {n}" for n in range(172))]
    write(tmp_path / "labels.json", json.dumps({name: str(number) for number, name in enumerate(classes)}))
    items = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "pushing a cup", "template": "Pushing [something] from left to right"},
    ]
    write(tmp_path / "train.json", "[\n" + ",\n".join(map(json.dumps, items)) + "\n]\n")
    write(tmp_path / "test.json", '[{"id": "1"}]')
    return tmp_path


def test_something_something_templates_lose_their_brackets_and_numbers_are_texts(ssv2: Path) -> None:
    videos = list_videos("something-something-v2", root=ssv2)
    assert videos.labels.tolist() == [0, 1] and len(videos.classes) == 174
    assert [os.path.relpath(videos.path(i), ssv2) for i in range(2)] == ["78687.webm", "42326.webm"]
    assert list_videos(ssv2 / "train.json").labels.tolist() == [0, 1]
    assert list_videos("something-something-v2", root=ssv2, split="test").labels.tolist() == [-1]


def test_something_something_by_its_longer_names_and_in_its_archives_folder(ssv2: Path) -> None:
    for name in ("labels", "train"):
        (ssv2 / f"{name}.json").rename(ssv2 / f"something-something-v2-{name}.json")
    (ssv2 / "20bn-something-something-v2").mkdir()
    videos = list_videos("something-something-v2", root=ssv2)
    assert os.path.relpath(videos.path(1), ssv2) == "20bn-something-something-v2/42326.webm"


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        (
            "train",
            "Pushing [something]",
            "Shoving [something]",
            "train.json, line 3: .*expected a template of labels.json",
        ),
        ("train", '"id": "42326", ', "", "train.json, line 3: .*expected an item with id and template"),
        ("train", '"}\n]', '"\n]', "train.json, line 4: found ']', but expected a JSON list"),
        ("train", '"}\n]', '"}\n', "train.json, line 5: found nothing, but expected a JSON list"),
        ("train", "[\n{", "{", "train.json, line 1: found '{\"id"),
        (
            "labels",
            '"1"',
            '"1000"',
            "labels.json, line 1: .*from left to right: 1000', but expected a number from 0 to 173",
        ),
        ("labels", '"1"', '"2"', "labels.json, line 1: .*each number from 0 to 173 once, but 1 is not there"),
        ("labels", '"1"', "", "labels.json, line 1: "),
    ],
)
def test_a_wrong_something_something_file_names_the_line(
    name: str, old: str, new: str, sentence: str, ssv2: Path
) -> None:
    file = ssv2 / f"{name}.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(RequestError, match=sentence):
        list_videos("something-something-v2", root=ssv2)


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    names = ["ApplyEyeMakeup", "HandstandPushups", *(f"Sport{number}" for number in range(99))]
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "".join(f"{number} {name}\r\n" for number, name in enumerate(names, start=1)))
    write(
        lists / "trainlist02.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nSport98/v_Sport98_g08_c01.avi 101\n"
    )
    write(lists / "testlist02.txt", "HandstandPushups/v_HandStandPushups_g01_c01.avi\n")
    return tmp_path


def test_ucf101_numbers_count_from_1_in_its_files_and_from_0_here(ucf101: Path) -> None:
    videos = list_videos("ucf101", root=ucf101, fold=2)
    assert videos.labels.tolist() == [0, 100] and videos.path(0).endswith("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi")
    assert list_videos("ucf101", root=ucf101, fold=2, split="test").labels.tolist() == [1]
    assert list_videos(ucf101 / "ucfTrainTestlist/trainlist02.txt").labels.tolist() == [0, 100]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("trainlist02.txt", "ApplyEyeMakeup/a.avi 1\nSport0/b.avi 4\n", "line 2: found 'Sport0/b.avi 4', but expected"),
        ("trainlist02.txt", "Nothing/a.avi 1\n", "line 1: .*Class and N as in"),
        (
            "classInd.txt",
            "1 ApplyEyeMakeup\n3 Sport1\n",
            "line 2: found '3 Sport1', but expected number and class: '2 ",
        ),
        ("classInd.txt", "1 ApplyEyeMakeup\n2 Sport98\n", "line 2: .*Sport98/v_Sport98_g08_c01.avi 101', but exp"),
    ],
)
def test_a_wrong_ucf101_file_names_the_line(name: str, text: str, sentence: str, ucf101: Path) -> None:
    write(ucf101 / "ucfTrainTestlist" / name, text)
    with pytest.raises(RequestError, match=sentence):
        list_videos("ucf101", root=ucf101, fold=2)


def test_a_fold_split_or_annotation_that_is_not_there_is_named(ucf101: Path) -> None:
    with pytest.raises(RequestError, match="fold is 4, but ucf101 has folds 1 to 3"):
        list_videos("ucf101", root=ucf101, fold=4)
    with pytest.raises(RequestError, match="ucf101 has no split 'val'; it has train, test"):
        list_videos("ucf101", root=ucf101, split="val")
    with pytest.raises(RequestError, match=r"split train: expected ucfTrainTestlist/trainlist03.txt in it"):
        list_videos("ucf101", root=ucf101, fold=3)


ODD = "#437_How_To_Ride_A_Bike!_(best)_[2] ride bike_f_cm_np1_ba_med_0.avi"


@pytest.fixture
def hmdb51(tmp_path: Path) -> Path:
    for name in ["brush_hair", "ride_bike", *(f"sport_{number}" for number in range(49))]:
        text = f"{ODD} 1\nb.avi 2 \nc.avi 0\n" if name == "ride_bike" else "a.avi 2 \n"
        write(tmp_path / "testTrainMulti_7030_splits" / f"{name}_test_split3.txt", text)
    return tmp_path


def test_hmdb51_lines_are_split_at_their_last_blank_and_0_is_unused(hmdb51: Path) -> None:
    videos = list_videos("hmdb51", root=hmdb51, fold=3)
    assert listed(videos, hmdb51) == [(f"ride_bike/{ODD}", "ride_bike")] and videos.labels.tolist() == [1]
    test = list_videos("hmdb51", root=hmdb51, fold=3, split="test")
    assert (len(test), os.path.relpath(test.path(1), hmdb51), test.label(50)) == (51, "ride_bike/b.avi", 50)


def test_a_wrong_hmdb51_file_names_the_line(hmdb51: Path) -> None:
    file = write(hmdb51 / "testTrainMulti_7030_splits/ride_bike_test_split3.txt", "a.avi 1\nb c.avi\n")
    with pytest.raises(
        RequestError, match=r"ride_bike_test_split3.txt, line 2: found 'b c.avi', but expected 'file.avi N"
    ):
        list_videos("hmdb51", root=hmdb51, fold=3)
    with pytest.raises(RequestError, match=r"has no split files: expected <class>_test_split1.txt"):
        list_videos("hmdb51", root=hmdb51)
    with pytest.raises(RequestError, match="split file of one class: name the card hmdb51"):
        list_videos(file)
    file.unlink()
    with pytest.raises(RequestError, match="has 50 classes, but hmdb51 has 51"):
        list_videos("hmdb51", root=hmdb51, fold=3, split="test")


def test_the_generated_camera_motions_keep_the_models_order(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "file,label,crf\n0000.mp4,zoom_in,30\n0001.mp4,static,18\n")
    videos = list_videos("camera_motion", root=tmp_path, split="test")
    assert videos.labels.tolist() == [5, 0] and videos.path(0) == str(tmp_path / "0000.mp4")


# --- cards ------------------------------------------------------------------------------------------------------------


def test_every_card_says_what_a_dataset_is() -> None:
    cards = {name: load_card(name) for name in files.names("datasets")}
    assert {name: (card.num_classes, card.sampling.rule, card.sampling.flip) for name, card in cards.items()} == {
        "camera_motion": (9, "dense", False),
        "hmdb51": (51, "dense", True),
        "imagenet1k": (1000, "dense", True),
        "kinetics400": (400, "dense", True),
        "kinetics600": (600, "dense", True),
        "kinetics700": (700, "dense", True),
        "something-something-v2": (174, "segments", False),
        "ucf101": (101, "dense", True),
    }
    assert all(card.name == name for name, card in cards.items())


def test_the_camera_motion_card_has_the_generators_classes() -> None:
    from hiera_video.data.camera_motion.generator import LABELS

    assert load_card("camera_motion").classes == list(LABELS)


def test_a_number_that_differs_from_the_published_one_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train.csv", kinetics_csv(SKIING))
    with caplog.at_level(logging.WARNING, logger="hiera_video"):
        list_videos("kinetics400", root=tmp_path)
    assert caplog.messages == ["kinetics400, split train: 3 videos are listed here, 246534 in the original"]


OWN = """
name: own
format: list
num_classes: 3
splits:
  train: {annotations: [train.txt], folder: [videos], listed: 2}
  val: {annotations: [val.txt], folder: [videos]}
layout: videos/NAME.mp4
source: ours
licence: none
"""


def test_a_card_of_ones_own_is_named_by_its_file_and_lies_with_its_data(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a.mp4 0\nb.mp4 1\n")
    write(tmp_path / "val.txt", "c.mp4 1\n")
    videos = list_videos(write(tmp_path / "own.yaml", OWN), split="val")
    assert (videos.path(0), videos.classes) == (str(tmp_path / "videos/c.mp4"), ["0", "1", "2"])
    write(tmp_path / "train.txt", "a.mp4 zoom\nb.mp4 pan\nd.mp4 tilt\n")
    write(tmp_path / "val.txt", "c.mp4 tilt\n")
    assert list_videos(tmp_path / "own.yaml", split="val").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("licence: none", "license: none", "own.yaml: there is no field 'license'; did you mean licence?"),
        ("licence: none", "", "own.yaml: the field licence is missing"),
        (
            "folder: [videos], l",
            "folders: [videos], l",
            "there is no field 'splits.train.folders'; did you mean splits.train.folder?",
        ),
        ("folder: [videos], l", "folder: videos, l", "splits.train.folder is 'videos', but must be a list of texts"),
        ("num_classes: 3", "num_classes: many", "num_classes is 'many', but must be a whole number"),
        ("format: list", "format: lists", "format is 'lists', but must be one of kinetics, ssv2"),
        ("num_classes: 3", "num_classes: 3\nclasses: [yes, no, 1]", "put yes, no and numbers in quotes"),
        ("num_classes: 3", "num_classes: 3\nclasses: torchvison:x", "can be a list or torchvision:kinetics400"),
        ("num_classes: 3", "num_classes: 3\nclasses: [a, b]", "has 2 classes, but own has 3"),
        ("listed: 2", "listed: [2, 3]", "splits.train.listed has 2 numbers for 1 folds"),
        ("name: own", "name: [own", "is no readable YAML"),
    ],
)
def test_a_wrong_card_is_one_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a.mp4 a\n")
    with pytest.raises(RequestError) as caught:
        list_videos(write(tmp_path / "own.yaml", OWN.replace(old, new)))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_cards_and_recipes_are_found_by_name_and_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    assert files.find("datasets", "ucf101").name == "ucf101.yaml"
    assert files.find("configs", "general").parent.name == "configs"
    assert files.find("datasets", write(tmp_path / "x.yaml")) == tmp_path / "x.yaml"
    with pytest.raises(RequestError, match=r"there is no dataset card 'kinetics40'; did you mean kinetics400\?"):
        files.find("datasets", "kinetics40")
    with pytest.raises(
        RequestError, match=r"there is no file nowhere/x.yaml; a recipe can be named too: creatures_from_mae"
    ):
        files.find("configs", "nowhere/x.yaml")


def test_an_installed_package_reads_the_cards_inside_it_not_a_neighbour_called_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "hiera_video")
    write(tmp_path / "datasets/other.yaml")
    write(tmp_path / "hiera_video/datasets/mine.yaml")
    assert files.names("datasets") == ["mine"]
    write(tmp_path / "pyproject.toml")
    write(tmp_path / "datasets/mine.yaml")
    assert files.find("datasets", "mine") == tmp_path / "datasets/mine.yaml"
