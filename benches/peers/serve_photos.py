"""Makes the photos that `bench_serve.py` sends: JPEGs of 500x375 pixels and about 79 kB, a common photo's size
on the web, cut from the calibration photos and saved at the quality that comes closest to it."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

import photos

SIZE = (500, 375)
BYTES = 79_000
COUNT = 8


def encode(image: Image.Image) -> bytes:
    """The JPEG whose size is closest to the one wanted."""

    def at(quality: int) -> bytes:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return out.getvalue()

    return min(map(at, range(50, 100)), key=lambda data: abs(len(data) - BYTES))


def cut(path: Path) -> Image.Image:
    """The middle of a photo, enlarged first if it is smaller."""
    image = Image.open(path).convert("RGB")
    factor = max(SIZE[0] / image.width, SIZE[1] / image.height, 1)
    image = image.resize((round(image.width * factor), round(image.height * factor)))
    left, top = (image.width - SIZE[0]) // 2, (image.height - SIZE[1]) // 2
    return image.crop((left, top, left + SIZE[0], top + SIZE[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders, first that has photos")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = next((paths for folder in arguments.photos if (paths := photos.find(folder, COUNT))), [])
    if not found:
        raise SystemExit("serve_photos: no photos to cut")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in found:
        (arguments.out / f"{path.stem}.jpg").write_bytes(encode(cut(path)))


if __name__ == "__main__":
    main()
