"""Decoding on a GPU: the same code run on the processor, what is checked of each file, and what is refused where."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from assets import H264, HEVC, READABLE, ROTATED, TEN_BIT, TRANSPORT, VARIABLE, Asset, numbers_in
from test_cli import run
from test_reader import has_torchcodec

from hiera_video import open_video
from hiera_video.data.reading import decoders, reader
from hiera_video.data.windows import Walk
from hiera_video.errors import RequestError, UnreadableVideo
from hiera_video.spec import ClipSpec
from hiera_video.tasks.features import job
from hiera_video.tasks.features.job import read_on_gpu

needs_torchcodec = pytest.mark.skipif(
    not has_torchcodec(), reason="torchcodec, or an FFmpeg that it finds, is not here"
)
NO_GPU = "decoder cuda needs an NVIDIA GPU, and torch sees none here: leave it out"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's code, with the processor in its place."""
    monkeypatch.setattr(decoders.CudaDecoder, "device", "cpu")
    for module in (reader, job):
        monkeypatch.setattr(module, "check_cuda", lambda: None)


@needs_torchcodec
@pytest.mark.parametrize("asset", [H264, HEVC, TEN_BIT, VARIABLE], ids=lambda asset: asset.name)
def test_frames_are_those_of_the_torchcodec_backend(asset: Asset, tmp_path: Path, on_cpu: None) -> None:
    path = asset.write(tmp_path)
    numbers = np.random.default_rng(0).permutation(asset.num_frames)[:10]
    with open_video(path, backend="torchcodec") as video, open_video(path, backend="cuda") as same:
        assert (same.backend, same.error, len(same)) == ("cuda", None, len(video))
        np.testing.assert_array_equal(same.frames(numbers).pixels, video.frames(numbers).pixels)
        np.testing.assert_array_equal(same.frames(numbers).times, video.times[numbers])


@needs_torchcodec
def test_pyav_decodes_no_more_than_the_first_picture(
    tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = H264.write(tmp_path)
    asked = []
    find = reader.PyAVDecoder._find
    monkeypatch.setattr(reader.PyAVDecoder, "_find", lambda self, number: asked.append(number) or find(self, number))
    with open_video(path, backend="cuda") as video:
        assert numbers_in(video.frames([80, 3]).pixels) == [80, 3]
    assert asked == [0]


@needs_torchcodec
def test_a_picture_with_another_time_than_its_packet_is_refused(
    tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = H264.write(tmp_path)
    with open_video(path, backend="cuda") as video:
        decoder: Any = video._decoder
        get = decoder._decoder.get_frames_at  # which passes the next picture off as the one that was asked for
        decoder._decoder = SimpleNamespace(get_frames_at=lambda numbers: get([number + 1 for number in numbers]))
        with pytest.raises(
            UnreadableVideo, match=r"by cuda \(the picture at 1\.00 s came with another time\): use back"
        ):
            video.frames([30])


@needs_torchcodec
def test_another_first_picture_than_pyavs_is_refused(
    tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROTATED.write(tmp_path)
    upside_down = lambda image, matrix: image[::-1, ::-1]  # noqa: E731
    with open_video(path, backend="cuda") as video:
        assert video.turned
    monkeypatch.setattr("hiera_video.data.reading.decoders.upright", upside_down)
    with pytest.raises(
        UnreadableVideo, match=r"by cuda \(it shows another first picture than PyAV: turned, or in other"
    ):
        open_video(path, backend="cuda")


@needs_torchcodec
def test_extraction_reads_by_pyav_what_the_gpu_cannot_show_and_tells_it_once(
    tmp_path: Path, on_cpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(asset.write(tmp_path)) for asset in (H264, TRANSPORT)]
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    how = Walk(ClipSpec(num_frames=2, frame_stride=4, size=(32, 32), resize=32), hop=1.0)
    decoded = list(read_on_gpu([(paths[0], 1), (paths[1], 0), (paths[1], 0), (str(text), 0)], how))
    assert [item.error is None for item in decoded] == [True, True, True, False]
    assert [item.windows.first for item in decoded if item.windows is not None] == [1, 0, 0]
    assert str(text) in str(decoded[-1].error) and "cuda" not in str(decoded[-1].error)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{paths[1]} cannot be decoded by cuda (cuda does not find frames reliably in mpegts files)")
    assert told.endswith("; it and others like it are decoded by PyAV")


def test_without_a_gpu_one_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    h264 = H264.write(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=NO_GPU):
        open_video(h264, backend="cuda")
    code, out, err = run(capsys, "extract", h264, "--output", tmp_path / "f", "--decoder", "cuda")
    assert (code, out, err) == (2, "", f"hiera-video: {NO_GPU}\n")
    code, _, err = run(capsys, "extract", h264, "--output", tmp_path / "f", "--decoder", "cuda", "--engine", "ray")
    assert (code, err) == (2, "hiera-video: decoder cuda is of engine local: leave one of the two out\n")
    code, _, err = run(capsys, "extract", h264, "--output", tmp_path / "f", "--decoder", "decord")
    assert code == 2 and "--decoder is 'decord', but must be one of auto, cuda" in err
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("torchcodec", "why"),
    [
        (None, r"needs torchcodec and an FFmpeg \(.+\)"),
        (SimpleNamespace(__version__="0.17.0+cpu"), r"needs a torchcodec built for CUDA, not 0\.17\.0\+cpu"),
    ],
)
def test_without_torchcodec_for_cuda_one_sentence_says_so(
    torchcodec: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(decoders, "import_torchcodec", lambda: None)
    monkeypatch.setitem(sys.modules, "torchcodec", torchcodec)
    remedy = r"pip install torchcodec --index-url https://download\.pytorch\.org/whl/cu130, or leave it out"
    with pytest.raises(RequestError, match=f"^decoder cuda {why}: {remedy}$"):
        decoders.check_cuda()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@needs_torchcodec
@pytest.mark.parametrize("asset", READABLE, ids=lambda asset: asset.name)
def test_a_gpu_shows_what_pyav_shows_or_refuses(asset: Asset, tmp_path: Path) -> None:
    path = asset.write(tmp_path)
    numbers = np.random.default_rng(0).permutation(asset.num_frames)[:10]
    with open_video(path, backend="pyav") as video:
        expected = video.frames(numbers).pixels.astype(int)
    try:
        with open_video(path, backend="cuda") as video:
            shown = video.frames(numbers).pixels.astype(int)
    except UnreadableVideo as error:
        assert "cannot be decoded by cuda" in str(error)
    else:
        assert np.abs(shown - expected).mean() <= 4
