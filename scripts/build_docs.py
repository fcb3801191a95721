"""The API reference as HTML pages, from the docstrings of the public names: ``python scripts/build_docs.py site``.

It needs the extra ``dev``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import hiera_video


def build(folder: Path) -> None:
    """Writes the pages. Raises ValueError where a public name has no docstring."""
    for name in hiera_video.__all__:
        value = getattr(hiera_video, name)
        if not (value.__doc__ or "").strip():
            raise ValueError(f"{name} has no docstring")
        setattr(hiera_video, name, value)  # loaded when first used: pdoc sees only what is there
    pdoc.render.configure(docformat="restructuredtext", footer_text=f"hiera_video {hiera_video.__version__}")
    pdoc.pdoc("hiera_video", output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
