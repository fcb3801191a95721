"""classify as a function: what the scores are, in which order answers come, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiera_video import FeatureExtractor, VideoClassifier, classify
from hiera_video.data.views import load_views
from hiera_video.errors import OutputError, RequestError, UnreadableVideo
from hiera_video.models.zoo import BUILT_IN
from hiera_video.spec import parse_views


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> VideoClassifier:
    return VideoClassifier.from_pretrained(tiny_model, device="cpu")


@pytest.mark.parametrize("taker", [VideoClassifier, FeatureExtractor])
def test_a_name_in_place_of_a_model_is_one_sentence(taker: Any, tmp_path: Path) -> None:
    for name in ("hiera_nano_16x64.camera_motion", tmp_path):
        with pytest.raises(RequestError, match="from_pretrained"):
            taker(name)


def test_scores_are_softmax_averaged_over_the_views(classifier: VideoClassifier, videos: Path) -> None:
    answer = classifier(videos / "a.mp4", top_k=6, views="2x3")
    clips = load_views(videos / "a.mp4", classifier.model.spec, 2, 3).clips
    with torch.inference_mode():
        expected = classifier.model(classifier.model.spec.normalize(clips)).softmax(-1).mean(0)
    scores = {score.index: score.score for score in answer.predictions}
    assert [scores[index] for index in range(6)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [score.score for score in answer.predictions] == sorted(scores.values(), reverse=True)
    assert {score.label for score in answer.predictions} == set("abcdef")
    assert answer.duration == pytest.approx(3.0)


def test_the_batch_size_changes_nothing(classifier: VideoClassifier, videos: Path) -> None:
    names = [str(videos / name) for name in ("a.mp4", "b/vp9.webm", "one.mp4", "b/turned.mp4")]
    one, many = (list(classifier.stream(names, batch_size=size, views="3x3")) for size in (1, 100))
    for a, b in zip(one, many, strict=True):
        assert [score.index for score in a.predictions] == [score.index for score in b.predictions]
        assert [s.score for s in a.predictions] == pytest.approx([s.score for s in b.predictions], abs=1e-6)


def test_answers_come_in_the_order_of_the_inputs_with_the_bad_ones_in_their_place(
    classifier: VideoClassifier, videos: Path
) -> None:
    names = [str(videos / name) for name in ("text.mp4", "a.mp4", "missing.mp4", "one.mp4", "empty.mp4")]
    answers = classifier.stream(names, num_workers=4)
    assert len(answers) == 5
    found = list(answers)
    assert [answer.input for answer in found] == names
    assert [bool(answer.predictions) for answer in found] == [False, True, False, True, False]
    assert [answer.error is None for answer in found] == [False, True, False, True, False]


def test_a_file_of_which_a_part_was_read_has_predictions_and_an_error(
    classifier: VideoClassifier, videos: Path
) -> None:
    answer = classifier(videos / "cut.mkv")
    assert answer.predictions and answer.error == "the file is cut off after 1.0 s."


def test_one_file_that_cannot_be_read_raises(classifier: VideoClassifier, videos: Path) -> None:
    with pytest.raises(UnreadableVideo, match=r"missing\.mp4"):
        classifier(videos / "missing.mp4")


def test_an_image_model_answers_for_images_and_videos(tiny_image_model: Path, videos: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    classifier = VideoClassifier.from_pretrained(tiny_image_model, device="cpu")
    image, video = classifier.stream([str(tmp_path / "picture.png"), str(videos / "a.mp4")])
    assert image.duration == 0 and len(image.predictions) == len(video.predictions) == 5
    assert image.predictions[0].label.startswith("class_")


def test_bf16_answers_like_fp32(tiny_model: Path, classifier: VideoClassifier, videos: Path) -> None:
    half = VideoClassifier.from_pretrained(tiny_model, device="cpu", precision="bf16")
    a, b = (one(videos / "a.mp4", top_k=6) for one in (half, classifier))
    scores = [{score.index: score.score for score in answer.predictions} for answer in (a, b)]
    assert max(abs(scores[0][index] - scores[1][index]) for index in range(6)) < 2e-2


def test_top_k_above_the_number_of_classes_gives_all(classifier: VideoClassifier, videos: Path) -> None:
    assert len(classifier(videos / "a.mp4", top_k=99).predictions) == 6


@pytest.mark.parametrize("views", ["5x", "x3", "0x3", "5x2", "5", "", "-1x3", "5x3x1", "\N{ARABIC-INDIC DIGIT FIVE}x3"])
def test_views_that_mean_nothing_are_refused(views: str) -> None:
    with pytest.raises(RequestError, match=r"must be clips x crops"):
        parse_views(views)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 0}, r"top_k is 0, but is at least 1"),
        ({"batch_size": 0}, r"batch_size is 0, but is at least 1"),
        ({"device": "cuda:7"}, r"device 'cuda:7' is not there; this machine has cpu"),
        ({"device": "toaster"}, r"device 'toaster' is not there; this machine has cpu"),
        ({"precision": "fp12"}, r"precision 'fp12' must be auto, fp32, bf16, fp16"),
    ],
)
def test_options_out_of_range_are_refused_by_name(
    option: dict[str, object], message: str, tiny_model: Path, videos: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        classify([str(videos / "a.mp4")], model=str(tiny_model), **option)  # type: ignore[arg-type]


def test_an_unwritable_picture_is_refused_before_any_work(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        classify([str(videos / "a.mp4")], picture=tmp_path / "no" / "picture.png")


def test_a_picture_has_a_row_for_each_answer(tiny_model: Path, videos: Path, tmp_path: Path) -> None:
    names = [str(videos / name) for name in ("a.mp4", "text.mp4", "one.mp4")]
    list(classify(names, model=str(tiny_model), picture=tmp_path / "two.png"))
    list(classify(names[:1], model=str(tiny_model), picture=tmp_path / "one.png"))
    two, one = (Image.open(tmp_path / f"{name}.png").size for name in ("two", "one"))
    assert two[0] == one[0] > 1000 and two[1] == 2 * one[1]


def test_the_built_in_model_answers_offline_and_says_its_labels() -> None:
    classifier = VideoClassifier.from_pretrained(BUILT_IN, device="cpu")
    assert classifier.labels[:2] == ["static", "pan_left"] and len(classifier.labels) == 9
    assert classifier.model.views.endswith("x1")
