"""Makes the example video of ``hiera-video serve``: a camera that pans right, rests and zooms in.

python scripts/make_example.py hiera_video/tasks/classify/example.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hiera_video.data.camera_motion.generator import LABELS, Motion, Path2D, render
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.reading.mp4 import write_mp4

#: Seconds that the camera pans, rests and zooms; frames a second; height and width; its speed in windows a second.
SECONDS, FPS, SIZE, SPEED = (7.5, 2.5, 2.5), 24, (240, 320), 0.12
#: The scene, its sides in pixels, and how many of them the window shows.
SCENE, SIDE, TEXELS = 7, 1200, 400.0


def make_example(path: Path) -> None:
    """Writes the video.

    Args:
        path: An mp4 file.
    """
    scene = procedural_picture(np.random.default_rng(SCENE), SIDE).float()
    pans, rests, zooms = SECONDS
    times = np.arange(round((pans + rests + zooms) * FPS)) / FPS
    panned, zoomed = SPEED * times.clip(0, pans), SPEED * (times - pans - rests).clip(0, zooms)
    center = np.stack([panned, np.zeros_like(panned)], axis=1)
    camera = Path2D(center, zoomed, np.zeros_like(zoomed))
    frames = render(scene, [], Motion(LABELS.index("static"), camera, camera), [], SIZE, TEXELS)
    pixels = frames.clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy()
    write_mp4(path, pixels, FPS, crf=32)


if __name__ == "__main__":
    make_example(Path(sys.argv[1]))
