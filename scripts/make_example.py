"""Makes the example video of ``hiera-video serve``: a camera that rests, pans right and then zooms in.

python scripts/make_example.py hiera_video/tasks/classify/example.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hiera_video.data.camera_motion.generator import LABELS, Motion, Path2D, render
from hiera_video.data.camera_motion.textures import procedural_picture
from hiera_video.data.reading.mp4 import write_mp4

#: Seconds of each motion, frames a second, height and width, and how fast the camera moves: windows a second.
SECONDS, FPS, SIZE, SPEED = 4, 24, (240, 320), 0.15
SCENE, SIDE, TEXELS = 20, 1200, 400.0


def make_example(path: Path) -> None:
    """Writes the video.

    Args:
        path: An mp4 file.
    """
    scene = procedural_picture(np.random.default_rng(SCENE), SIDE).float()
    times = np.arange(3 * SECONDS * FPS) / FPS
    panned, zoomed = ((times - begin).clip(0, SECONDS) * SPEED for begin in (SECONDS, 2 * SECONDS))
    center = np.stack([panned, np.zeros_like(panned)], axis=1)
    camera = Path2D(center, zoomed, np.zeros_like(zoomed))
    frames = render(scene, [], Motion(LABELS.index("static"), camera, camera), [], SIZE, TEXELS)
    pixels = frames.clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy()
    write_mp4(path, pixels, FPS, crf=30)


if __name__ == "__main__":
    make_example(Path(sys.argv[1]))
