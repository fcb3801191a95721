"""Pictures as training data: listed from class folders, cropped, augmented and replaced like videos of one frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from assets import Asset, numbers_in, picture
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from hiera_video.data import dataset as dataset_module
from hiera_video.data.augment import crop_box, crop_resize, draw_crop, rand_augment
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.lists.video_list import VideoList, list_videos
from hiera_video.data.loader import ClipLoader
from hiera_video.data.on_device import on_device
from hiera_video.data.reading.child_process import IsolatedReader
from hiera_video.data.reading.files import is_image, read_image
from hiera_video.data.reading.reader import open_video
from hiera_video.data.sampling import keyed_rng
from hiera_video.data.views import load_views
from hiera_video.data.views import test_views as views_for_test
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import FINETUNE, IMAGE_SPEC, PRETRAIN, Augment, ClipSpec

SPEC = IMAGE_SPEC.replace(size=(32, 32), resize=36)
WORDNET = [f"n{number:08d}" for number in range(1000)]


def photo(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours with hard edges, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 3 : height // 2] = rng.integers(0, 256, 3)
    return pixels


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> VideoList:
    """Six pictures of two classes, one of which cannot be read."""
    paths = [save(tmp_path / f"{name}/{i}.png", photo(i, 40 + i, 60)) for i, name in enumerate("aaabbb")]
    paths[4].write_text("no picture")
    return list_videos(tmp_path, images=True)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_class_folders_give_pictures_where_these_are_asked_for(tmp_path: Path) -> None:
    for name in ("train/b/1.JPEG", "train/a/deep/2.webp", "train/a/3.mp4", "train/a/.hidden.png", "val/b/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train/c").mkdir()
    videos, listed = list_videos(tmp_path), list_videos(tmp_path, images=True)
    assert [videos.path(0)] == [str(tmp_path / "train/a/3.mp4")] and len(videos) == 1
    assert [listed.path(i) for i in range(2)] == [
        str(tmp_path / f"train/{one}") for one in ("a/deep/2.webp", "b/1.JPEG")
    ]
    assert (listed.labels.tolist(), listed.classes) == ([0, 1], ["a", "b", "c"])
    assert list_videos(tmp_path, split="val", images=True).labels.tolist() == [1]
    with pytest.raises(RequestError, match=r"lists no video \(pictures need images\) of the split val"):
        list_videos(tmp_path, split="val")


def test_a_list_of_pictures_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.jpg,x\nb.png,y\n")
    for images in (False, True):
        assert list_videos(tmp_path / "list.csv", images=images).labels.tolist() == [0, 1]


def imagenet(root: Path, folders: list[str], *files: str) -> Path:
    for name in folders:
        (root / "train" / name).mkdir(parents=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_imagenet_has_the_published_names_in_the_order_of_its_folders(tmp_path: Path) -> None:
    imagenet(tmp_path, WORDNET, "train/n00000002/x.JPEG", "val/n00000000/1.JPEG", "val/n00000999/2.JPEG", "kit/a.txt")
    val = list_videos("imagenet1k", root=tmp_path, split="val")
    assert [(val.classes[int(val.label(i))], val.label(i)) for i in range(2)] == [("tench", 0), ("toilet tissue", 999)]
    assert len(set(val.classes)) == 1000
    assert list_videos("imagenet1k", root=tmp_path).labels.tolist() == [2]
    reverse = list_videos("imagenet1k", root=tmp_path, split="val", classes=val.classes[::-1])
    assert reverse.labels.tolist() == [999, 0]


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (WORDNET[:100], "has 100 classes, but imagenet1k has 1000"),
        (["tench", *WORDNET[1:]], "found 'tench', but expected folders named by WordNet's numbers, such as n01440764"),
        (WORDNET[1:], "has 999 classes"),
    ],
)
def test_imagenet_folders_that_would_give_wrong_numbers_are_refused(
    folders: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=sentence):
        list_videos("imagenet1k", root=imagenet(tmp_path, folders, "val/n00000000/1.JPEG"), split="val")


def test_imagenet_without_a_split_or_with_another_class_in_it_is_refused(tmp_path: Path) -> None:
    imagenet(tmp_path, WORDNET)
    with pytest.raises(RequestError, match=r"has no pictures of imagenet1k: expected the folder \S+val"):
        list_videos("imagenet1k", root=tmp_path, split="val")
    imagenet(tmp_path, [], "val/n12345678/1.JPEG")
    with pytest.raises(RequestError, match="val: found 'n12345678', but expected one of 1000 classes"):
        list_videos("imagenet1k", root=tmp_path, split="val")


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_cropped_as_pillow_does_it_and_left_to_the_device(pictures: VideoList) -> None:
    sample = ClipDataset(pictures, SPEC, augment=PRETRAIN, seed=3, num_clips=2)[5, 1]
    assert sample["clip"].shape == (2, 3, 1, 32, 32) and sample["clip"].dtype == torch.uint8
    assert (sample["epoch"], sample["index"], sample["label"], sample["repeat"].tolist()) == (5, 1, 0, [0, 1])
    for repeat, clip in enumerate(sample["clip"]):
        top, left, rows, columns = crop_box(draw_crop(keyed_rng(3, 5, 1, repeat), PRETRAIN), 41, 60)
        box = Image.fromarray(photo(1, 41, 60)).crop((left, top, left + columns, top + rows))
        expected = np.asarray(box.resize((32, 32), Image.Resampling.BICUBIC), dtype=int)
        assert np.abs(clip[:, 0].permute(1, 2, 0).numpy() - expected).max() <= 2


def test_randaugment_comes_behind_a_pictures_crop(pictures: VideoList, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def watch(frames: NDArray[np.uint8], augment: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
        seen.append(frames.shape)
        return 255 - rand_augment(frames, augment, rng)

    sample = ClipDataset(pictures, SPEC, augment=FINETUNE, num_augments=3)[0, 2]
    monkeypatch.setattr(dataset_module, "rand_augment", watch)
    other = ClipDataset(pictures, SPEC, augment=FINETUNE, num_augments=3)[0, 2]
    assert seen == [(1, 32, 32, 3)] * 3
    assert torch.equal(other["clip"], 255 - sample["clip"])


def test_a_picture_is_a_still_to_a_video_model_beside_videos(pictures: VideoList, tmp_path: Path) -> None:
    video = Asset("moving.mp4", num_frames=30).write(tmp_path)
    both = VideoList.make([pictures.path(0), str(video)], [0, 1], ["a", "b"])
    spec = ClipSpec(num_frames=4, size=(32, 32), resize=36)
    loader = ClipLoader(ClipDataset(both, spec, augment=FINETUNE), 2, num_workers=1)
    (batch,) = loader
    assert batch["clip"].shape == (2, 3, 4, 32, 32)
    row = batch["index"].tolist().index(0)
    assert torch.equal(batch["clip"][row], batch["clip"][row, :, :1].expand(-1, 4, -1, -1))
    assert not torch.equal(batch["clip"][1 - row, :, 0], batch["clip"][1 - row, :, 3])


def test_batches_of_pictures_are_the_same_with_any_workers_and_a_bad_one_is_replaced(pictures: VideoList) -> None:
    runs: list[tuple[dict[str, Any], ClipLoader]] = []
    for workers in (0, 2):
        loader = ClipLoader(ClipDataset(pictures, SPEC, augment=FINETUNE, num_augments=2), 6, num_workers=workers)
        runs.append((next(iter(loader)), loader))
        loader.close()
    (one, loader), (other, _) = runs
    assert torch.equal(one["clip"], other["clip"]) and one["index"].tolist() == other["index"].tolist()
    assert 4 not in one["index"].tolist()
    (problem,) = loader.problems
    assert (
        problem.path == pictures.path(4) and problem.replaced and "is not an image that can be read" in problem.reason
    )
    assert on_device(one, SPEC, "cpu").shape == (12, 3, 1, 32, 32)


def test_bicubic_crops_of_uint8_are_pillows_within_two_levels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for box in ((10, 20, 250, 280), (10, 20, 100, 120)):
        top, left, rows, columns = box
        cut = crop_resize(pixels[np.newaxis], box, IMAGE_SPEC)[:, 0].permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels).crop((left, top, left + columns, top + rows))
        expected = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), dtype=int)
        assert np.abs(cut - expected).max() <= 2


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(300, 402), (512, 256), (120, 165)])
def test_the_test_view_of_a_picture_is_the_published_one(height: int, width: int, tmp_path: Path) -> None:
    path = save(tmp_path / "photo.png", photo(1, height, width))
    (clip,) = load_views(path, IMAGE_SPEC, 1, 1).clips
    published = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    expected = np.asarray(published(Image.open(path)), dtype=int)
    assert np.abs(clip[:, 0].permute(1, 2, 0).numpy() - expected).max() <= 2


def test_test_views_of_pictures_leave_the_bad_one_out(pictures: VideoList) -> None:
    answers = list(views_for_test(pictures, SPEC, 1, 3, num_workers=1))
    assert [answer["clips"] is None for answer in answers] == [False] * 4 + [True, False]
    assert answers[0]["clips"].shape == (3, 3, 1, 32, 32)


# --- depth, transparency, animation -----------------------------------------------------------------------------------

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey_float.tif"])
def test_grey_of_more_than_8_bits_keeps_its_range(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((CASES / name).read_bytes())
    with open_video(tmp_path, fps=1) as video:
        frame = video.frames([0]).pixels[0]
    np.testing.assert_array_equal(frame, read_image(str(CASES / name)))
    assert np.abs(frame[32, [0, 16, 32, 48, 63]].T - np.array([0, 65, 130, 194, 255])).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], dtype=np.uint16), [0, 1, 255]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[-1, 0, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_the_scale_of_wide_grey_is_the_first_that_holds_it(
    values: NDArray[Any], expected: list[int], tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(str(tmp_path / "a.tif"))[0, :, 1].tolist() == expected


def test_colours_of_16_bits_and_other_kinds_of_pixels_are_read(tmp_path: Path) -> None:
    wide = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], 64, axis=0).repeat(3, axis=2)
    with av.open(str(tmp_path / "rgb48.png"), "w", format="image2") as container:
        stream: Any = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "rgb48be"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(wide, format="rgb48le").reformat(format="rgb48be")))
        container.mux(stream.encode(None))
    assert np.abs(read_image(str(tmp_path / "rgb48.png")).astype(int) - wide / 257).max() <= 1
    grey = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, axis=0))
    for mode, kind in (("1", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("LA", "png"), ("P", "gif")):
        grey.convert("L" if mode == "LA" else "RGB" if mode == "P" else mode).convert(mode).save(tmp_path / f"a.{kind}")
        seen = read_image(str(tmp_path / f"a.{kind}")).astype(int)
        assert seen.shape == (64, 64, 3) and abs(seen.mean() - 127.5) < 3


def gradient(seed: int) -> Image.Image:
    """From transparent on the left to opaque on the right."""
    pixels = np.dstack([photo(seed, 40, 64), np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(40, axis=0)])
    return Image.fromarray(pixels)


def on_white(picture: Image.Image) -> NDArray[np.float64]:
    pixels = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def test_transparency_is_on_white_alone_in_a_folder_and_in_videos(tmp_path: Path) -> None:
    pictures = [gradient(seed) for seed in range(4)]
    for number, one in enumerate(pictures):
        one.save(tmp_path / f"{number}.png")
    expected = np.stack([on_white(one) for one in pictures])
    with open_video(tmp_path, fps=10) as video:
        folder = video.frames(range(4)).pixels
    assert np.abs(folder - expected).max() <= 1
    np.testing.assert_array_equal(read_image(str(tmp_path / "2.png")), folder[2])
    for name, codec, form in (("a.mov", "png", "rgba"), ("b.mov", "qtrle", "argb"), ("c.mkv", "ffv1", "bgra")):
        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = 40, 64, form
            for one in pictures:
                frame = av.VideoFrame.from_ndarray(np.asarray(one), format="rgba").reformat(format=form)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for backend in ("auto", "pyav"):
            with open_video(tmp_path / name, backend=backend) as video:
                assert np.abs(video.frames(range(4)).pixels - expected).max() <= 1, name
        with pytest.raises(UnreadableVideo, match="decord leaves out the transparency of these pictures"):
            open_video(tmp_path / name, backend="decord")


def test_a_transparent_colour_is_on_white(tmp_path: Path) -> None:
    palette = Image.fromarray(photo(0, 40, 64)).quantize(8)
    palette.save(tmp_path / "p.png", transparency=3)
    clear = np.asarray(palette) == 3
    assert clear.any() and (read_image(str(tmp_path / "p.png"))[clear] == 255).all()
    bits = np.full((8, 8), 1000, dtype=np.uint16)
    bits[:4] = 65535
    bits[:, :2] = 0
    Image.fromarray(bits).save(tmp_path / "w.png", transparency=0)
    assert read_image(str(tmp_path / "w.png"))[7, [0, 7], 0].tolist() == [255, 4]


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "avif"])
def test_an_animation_is_a_video_with_its_times(kind: str, tmp_path: Path) -> None:
    path, shown = tmp_path / f"a.{kind}", [40, 80, 40, 120, 40, 200]
    frames = [Image.fromarray(picture(number, 48, 64)).convert("RGBA") for number in range(6)]
    for number, one in enumerate(frames):
        one.paste((0, 0, 0, 0), (40, 0, 48 + number, 10))
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "avif" else {}
    if kind == "gif":
        options["disposal"] = 2
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=shown, **options)
    expected = np.stack([on_white(one) for one in frames])
    assert not is_image(path)
    with IsolatedReader() as reader, reader.open(path) as video:
        np.testing.assert_allclose(video.times, np.cumsum([0, *shown[:-1]]) / 1000, atol=1e-6)
        assert video.duration == pytest.approx(0.52)
        pixels = video.frames(range(6)).pixels
        assert numbers_in(pixels) == list(range(6)) and np.abs(pixels - expected).mean() < 3
        for number in (4, 1, 5, 0):
            np.testing.assert_array_equal(video.frames([number]).pixels[0], pixels[number])
    with open_video(path.read_bytes()) as video:
        assert len(video) == 6
    assert load_views(path, SPEC.replace(num_frames=4), 1, 1).clips.shape == (1, 3, 4, 32, 32)


def test_a_png_a_webp_and_an_avif_that_do_not_move_are_stills(tmp_path: Path) -> None:
    for kind in ("png", "webp", "avif"):
        gradient(0).save(tmp_path / f"a.{kind}")
        assert is_image(tmp_path / f"a.{kind}")
    assert is_image(tmp_path / "missing.png") and is_image("https://example.org/a.webp")


def test_an_animation_that_breaks_off_says_so(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(number, 48, 64)) for number in range(6)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=40)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with open_video(tmp_path / "a.png") as video:
        assert 1 <= len(video) < 6
        assert video.error is not None and f"{len(video)} of 6 frames are there" in video.error
        assert len(video.frames(range(len(video))).pixels) == len(video)
