"""Names what happens in a video with an exported ONNX file: without torch, and without this package.

    hiera-video export hiera_nano_16x64.camera_motion --output camera_motion.onnx
    python scripts/run_onnx.py docs/zoom_in.mp4 camera_motion.onnx

The file's metadata say how clips are made and what the classes are called. The answer is that of
``hiera-video classify --views 1x1``: the centre clip and crop (but for damaged videos, where this one shows damaged
frames). Needs av, numpy, onnxruntime and pillow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("model", help="a file made by hiera-video export")
    parser.add_argument("--top-k", type=int, default=5, help="classes to name")
    options = parser.parse_args()
    try:
        session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
        config = json.loads(session.get_modelmeta().custom_metadata_map["config.json"])
        pictures = read_clip(options.video, config["clip"])
    except KeyError:
        sys.exit(f"run_onnx: {options.model} was not made by hiera-video export")
    except Exception as error:  # PyAV's and onnxruntime's own
        sys.exit(f"run_onnx: {str(error).splitlines()[0]}")
    clip = normalized(np.stack([centre_crop(picture, config["clip"]) for picture in pictures]), config["clip"])
    if len(session.get_inputs()[0].shape) == 4:  # an image model
        clip = clip[:, :, 0]
    (logits,) = session.run(["logits"], {"clip": clip})[0]
    if config.get("multi_label"):
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    labels = config["labels"] or [f"class_{index}" for index in range(len(scores))]
    for index in np.argsort(-scores)[: options.top_k]:
        print(f"{scores[index]:7.2%}  {labels[index]}")


def read_clip(path: str, spec: dict[str, Any]) -> list[Image.Image]:
    """Reads the frames of the centre clip.

    Args:
        path: The video.
        spec: What a clip is.

    Returns:
        Upright pictures. Frames that cannot be decoded are replaced by those before.

    Raises:
        ValueError: The video has no frame that can be shown.
    """
    # Titles may be in any encoding, which PyAV lets pass by itself from 19 on.
    lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    with av.open(path, **lenient) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError(f"{path} has no video stream")
        packets = [packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard]
        stamps = np.array(sorted(packet.pts for packet in packets))
        if not len(stamps):
            raise ValueError(f"{path} has no frame with a time")
        clip = stamps[centre_clip(stamps * float(stream.time_base), spec)]
        container.seek(int(clip[0]), stream=stream)
        shown: dict[int, Image.Image] = {}
        for frame in decoded(container, stream):
            if frame.pts in clip:
                shown[frame.pts] = frame.to_image().rotate(frame.rotation, expand=True)
            if frame.pts is not None and frame.pts >= clip[-1]:
                break
    if not shown:
        raise ValueError(f"{path} has no frame that can be decoded")
    there = np.array(sorted(shown))
    nearest = there[np.maximum(np.searchsorted(there, clip, side="right") - 1, 0)]
    return [shown[stamp] for stamp in nearest.tolist()]


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decodes from here on.

    Args:
        container: The open video.
        stream: Its video stream.

    Yields:
        Frames, but for those that cannot be decoded.
    """
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def centre_clip(times: NDArray[np.float64], spec: dict[str, Any]) -> NDArray[np.int64]:
    """Chooses the frames of the centre clip; it spans the same seconds at every frame rate.

    Args:
        times: Times of all frames in seconds, ascending.
        spec: What a clip is.

    Returns:
        Indices of frames, int64 [num_frames]; a short video repeats its last frame.
    """
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 30.0
    length = spec["num_frames"] * spec["frame_stride"] / spec["target_fps"] * rate
    start = math.floor(max(0.0, len(times) - length) / 2)
    positions = np.linspace(start, start + length - 1, spec["num_frames"]).clip(0, len(times) - 1)
    uniform = times[0] + np.arange(len(times)) / rate
    if np.abs(times - uniform).max() <= 1.001e-3:  # but for clocks of whole milliseconds
        return positions.astype(np.int64)
    return np.searchsorted(times, times[0] + positions / rate + 1e-6, side="right").astype(np.int64) - 1


def centre_crop(picture: Image.Image, spec: dict[str, Any]) -> NDArray[np.uint8]:
    """Resizes the short side to ``spec["resize"]``, and cuts out the centre.

    Args:
        picture: A frame.
        spec: What a clip is.

    Returns:
        uint8 [height, width, 3] of ``spec["size"]``.
    """
    height, width = spec["size"]
    enlarge = max(1.0, spec["resize"] / min(height, width))
    scale = max(height * enlarge / picture.height, width * enlarge / picture.width)
    rows = max(round(height * enlarge), math.floor(picture.height * scale + 1e-6))
    columns = max(round(width * enlarge), math.floor(picture.width * scale + 1e-6))
    top, left = math.ceil((rows - height) / 2), math.ceil((columns - width) / 2)
    x, y = picture.width / columns, picture.height / rows
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    method = Image.Resampling[spec["interpolation"].upper()]
    if spec["antialias"]:
        return np.asarray(picture.resize((width, height), method, box=box))
    # Pillow's resize always filters when it shrinks; its transform never does.
    return np.asarray(picture.transform((width, height), Image.Transform.EXTENT, box, method))


def normalized(clip: NDArray[np.uint8], spec: dict[str, Any]) -> NDArray[np.float32]:
    """Normalises a clip.

    Args:
        clip: uint8 [T, H, W, 3].
        spec: What a clip is.

    Returns:
        float32 [1, 3, T, H, W].
    """
    mean, std = (np.array(spec[name], dtype=np.float32) for name in ("mean", "std"))
    scaled = np.asarray((clip / np.float32(255) - mean) / std, dtype=np.float32)
    return scaled.transpose(3, 0, 1, 2)[np.newaxis]


if __name__ == "__main__":
    main()
