"""Makes docs/zoom_in.mp4, the clip of the README's first command: a hand-held camera zooms in on a photograph that
scikit-image carries and that the built-in model was not trained on.

    python scripts/make_sample_clip.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hiera_video.data.camera_motion.generator import (
    LABELS,
    draw_motion,
    draw_patches,
    fitting_texels,
    render,
)
from hiera_video.data.camera_motion.textures import photographs
from hiera_video.data.reading.mp4 import write_mp4

SIZE, FPS, SECONDS = (240, 320), 30, 4
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """The seed is picked so that a foreign patch crosses the view."""
    rng = np.random.default_rng(11)
    cat, coffee = (photo.float() for photo in photographs(held_out=True)[:2])
    times = np.arange(FPS * SECONDS) / FPS
    motion = draw_motion(rng, LABELS.index("zoom_in"), times, slowest=0.1, fastest=0.12)
    patches = draw_patches(rng, times, share=1.0)[:1]
    frames = render(cat, [coffee], motion, patches, SIZE, min(fitting_texels(motion, cat, SIZE), 240))
    pictures = frames.clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy()
    write_mp4(DOCS / "zoom_in.mp4", pictures, FPS, crf=24, options={"preset": "veryfast"})


if __name__ == "__main__":
    main()
