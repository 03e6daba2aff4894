"""Photos as the networks' input: what the engines are given, and what quantisation is calibrated on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from network import SIDE, Preprocessing

SUFFIXES = {".jpg", ".jpeg", ".png"}


def find(folder: Path, count_max: int) -> list[Path]:
    """The first photos of a folder, by name, its subfolders left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:count_max]


def crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resizes the short side and cuts the middle in one step, so that only the crop's pixels are computed."""
    width, height = image.size
    side = min(width, height) * SIDE / preprocessing.resize
    left, top = (width - side) / 2, (height - side) / 2
    resampling = Image.Resampling.BICUBIC if preprocessing.bicubic else Image.Resampling.BILINEAR
    return image.resize((SIDE, SIDE), resampling, box=(left, top, left + side, top + side))


def pixels(paths: Iterable[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """8-bit RGB crops, `[N, 224, 224, 3]`."""
    return np.stack([np.asarray(crop(Image.open(path).convert("RGB"), preprocessing)) for path in paths])


def normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """8-bit crops to the input, same shape, float32."""
    mean = np.array(preprocessing.mean, np.float32)
    deviation = np.array(preprocessing.deviation, np.float32)
    return (pixels.astype(np.float32) - mean) / deviation
