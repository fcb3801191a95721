"""Collects the pictures that the general model learns from, out of Debian's packages, with the licence of each.

    python scripts/general_pictures.py --output pictures      # 190 MB are downloaded, 60 MB are left (Debian, Ubuntu)

``photographs/*.jpg`` has a short side of at most 1,024 pixels, ``cutouts/*.png`` (photographs of single things, with an
alpha channel) a long one of at most 256; ``sources.csv`` names package, file, author's statement and licence.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image, ImageOps
from tqdm import tqdm

Image.MAX_IMAGE_PIXELS = None

#: Package: (folder in it, files that are photographs, licence as the package or its metadata say).
PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds", ["*.jpg"], "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0 (by file)"),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds", ["Fossa*.jpg", "Kleiber*.jpg"], "CC-BY-SA-4.0"),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature", ["*.jpg"], "GPL-2+"),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers",
        [
            f"{name}/contents/images/2560x1600.jpg"
            for name in [
                "Autumn",
                "BytheWater",
                "ColorfulCups",
                "DarkestHour",
                "EveningGlow",
                "FallenLeaf",
                "Grey",
                "Kite",
                "OneStandsOut",
                "Path",
                "summer_1am",
                "ColdRipple",
            ]
        ],
        "LGPL-3",
    ),
}
CUTOUTS = ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "GPL-2")
#: Kinds of stamps that are photographs of things.
THINGS = [
    "animals",
    "clothes",
    "food",
    "hobbies",
    "household",
    "medical",
    "people",
    "plants",
    "sports",
    "town",
    "vehicles",
    "military",
    "seasonal",
]


def unpacked(package: str, folder: Path) -> Path:
    """Downloads a package by apt and unpacks it."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    (file,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(file), str(folder / package)], check=True)
    file.unlink()
    return folder / package


def shrunk(file: Path, mode: str, *, short: int | None = None, long: int | None = None) -> Image.Image:
    """A picture whose short or long side is at most so many pixels."""
    picture = ImageOps.exif_transpose(Image.open(file)).convert(mode)
    scale = min(1.0, short / min(picture.size) if short else long / max(picture.size) if long else 1.0)
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )


def collect(output: Path) -> None:
    """Fills ``output``, which must not be there."""
    if output.exists():
        raise SystemExit(f"general_pictures.py: {output} is there already: delete it, or name another folder.")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("general_pictures.py needs apt-get and dpkg-deb, as Debian and Ubuntu have them.")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        half = Path(temporary) / "pictures"
        (half / "photographs").mkdir(parents=True)
        (half / "cutouts").mkdir()
        for package, (folder, patterns, licence) in tqdm(PHOTOGRAPHS.items(), desc="photographs"):
            root = unpacked(package, Path(temporary)) / folder
            for file in sorted(found for pattern in patterns for found in root.glob(pattern) if not found.is_symlink()):
                name = "_".join(file.relative_to(root).parts).replace("_contents_images_2560x1600", "")
                shrunk(file, "RGB", short=1024).save(half / "photographs" / name, quality=92)
                rows.append(["photographs/" + name, package, str(file.relative_to(root)), licence])
        package, folder, licence = CUTOUTS
        root = unpacked(package, Path(temporary)) / folder
        for file in sorted(root.rglob("*.png")):
            parts = file.relative_to(root).parts
            if parts[0] not in THINGS or "cartoon" in parts or file.stem.endswith("_mirror"):
                continue
            picture = shrunk(file, "RGBA", long=256)
            if min(picture.getchannel("A").getdata()) > 0:  # no outline
                continue
            name = "_".join(parts)
            picture.save(half / "cutouts" / name)
            rows.append(["cutouts/" + name, package, str(file.relative_to(root)), licence])
        with (half / "sources.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", "package", "source", "licence"], *rows])
        shutil.move(half, output)
    photographs = sum(row[0].startswith("photographs") for row in rows)
    print(f"{output}: {photographs} photographs, {len(rows) - photographs} cut-outs; sources.csv has their licences")


if __name__ == "__main__":
    auto_cli(collect, as_positional=False)
