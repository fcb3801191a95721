"""What several tests share: small models in our format, a folder of made files good and bad, a hub on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from assets import H264, LONG_MKV, ONE_FRAME, ROTATED, VP9, cut_off, write_audio
from shelf import Shelf
from training_sets import write_video

from hiera_video.models.architecture import Architecture
from hiera_video.models.checkpoints.formats import IMAGE_FORM
from hiera_video.models.checkpoints.saving import save_pretrained
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import HieraMAE, MAEArchitecture
from hiera_video.spec import IMAGE_SPEC, ClipSpec

# Two workers run the tests (pyproject.toml), and models here are small: threads would only wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TINY = Architecture(input_size=(4, 32, 32), embed_dim=8, stages=(1, 1, 1, 1), num_classes=6, head_init_scale=1.0)
TINY_IMAGE = Architecture(
    **{**IMAGE_FORM, "input_size": (32, 32), "num_classes": 6}, embed_dim=8, stages=(1, 1, 1, 1), head_init_scale=1.0
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video model of random weights, 4 frames of 32 x 32, with labels a to f and views 2x1."""
    torch.manual_seed(0)
    model = Hiera(TINY, ClipSpec(num_frames=4, size=(32, 32), resize=36))
    model.labels, model.views = list("abcdef"), "2x1"
    return save_pretrained(model, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MAE of random weights, 4 frames of 64 x 64: 8 mask units."""
    torch.manual_seed(0)
    arch = MAEArchitecture(
        **{**vars(TINY), "input_size": (4, 64, 64), "q_pool": 2},
        mask_ratio=0.5,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    model = HieraMAE(arch, ClipSpec(num_frames=4, size=(64, 64), resize=64))
    return save_pretrained(model, tmp_path_factory.mktemp("tiny_mae"))


@pytest.fixture(scope="session")
def tiny_image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its image form, 32 x 32."""
    torch.manual_seed(0)
    model = Hiera(TINY_IMAGE, IMAGE_SPEC.replace(size=(32, 32), resize=36))
    return save_pretrained(model, tmp_path_factory.mktemp("tiny_image"))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4, b/turned.mp4, b/vp9.webm are good, one.mp4 has one frame, cut.mkv half of its data; the rest is bad:
    audio.mp4, empty.mp4, text.mp4.
    """
    folder = tmp_path_factory.mktemp("videos")
    (folder / "b").mkdir()
    H264.write(folder).rename(folder / "a.mp4")
    ROTATED.write(folder).rename(folder / "b" / "turned.mp4")
    VP9.write(folder).rename(folder / "b" / "vp9.webm")
    ONE_FRAME.write(folder).rename(folder / "one.mp4")
    whole = LONG_MKV.write(folder)
    cut_off(whole, 0.5).rename(folder / "cut.mkv")
    whole.unlink()
    write_audio(folder / "audio.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 200)
    return folder


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and sub/b.mp4, 2 s at 30 frames a second: what annotators labelled (annotation_tools.py)."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "sub").mkdir()
    for number, name in enumerate(("a.mp4", "sub/b.mp4")):
        picture = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        write_video(folder / name, [np.roll(picture, shift, axis=1) for shift in range(60)])
    (folder / "b.mp4").symlink_to("sub/b.mp4")
    return folder


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shelf]:
    server = Shelf()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HIERA_VIDEO_WEIGHTS_URL", f"{server.url}/hiera/")
    yield server
    server.shutdown()
    server.server_close()
