"""Image files -> arrays, with the care real folders need.

Every reader, the checker and prediction open files here and nowhere else: one allow-list of formats, one pixel cap,
one rule for colour, one rule for EXIF orientation. Truncated files are refused, never half-read.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from weakly.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
"""Formats that are decoded, recognised by content: a PNG named ``.JPEG`` (ImageNet has some) is read as PNG."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
"""File names that :func:`list_images` takes from a folder."""

MAX_PIXELS = 100_000_000
"""Default cap on height x width: about 300 MB once decoded to RGB."""

EXIF_ORIENTATION = 0x0112

# What Pillow's decoders raise on damaged bytes; UnidentifiedImageError is an OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# Pillow stretches 2- and 4-bit grey to 0..255; dividing gives the stored values back.
_GREY_STRETCH = {"L;2": 85, "L;4": 17}

_pillow_limit = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file's header states.

    Attributes:
        size: (height, width) of the stored frame in pixels.
        format: one of :data:`FORMATS`, by content.
        mode: Pillow's name of the pixel layout: ``"RGB"``, ``"L"`` (grey), ``"P"`` (palette), ``"CMYK"``, ``"I;16"``.
        orientation: EXIF orientation 1..8; 1 (upright) where the file states none.
    """

    size: tuple[int, int]
    format: str
    mode: str
    orientation: int


def read_image(
    path: str | Path, *, mode: Literal["rgb", "index"] = "rgb", upright: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[Any]:
    """Decode one image file.

    Args:
        path: a JPEG, PNG, WebP, TIFF or BMP file, whatever its suffix; of animations and stacks the first frame.
        mode: ``"rgb"`` for colours: grey, palette, CMYK and 16-bit files are converted (16-bit by dividing by 257),
            transparency is laid over white. ``"index"`` for the raw values of a palette or grey file (label maps).
        upright: apply the EXIF orientation, as viewers do. Labels live in the *stored* frame, so datasets are read
            with False and people's own photographs with True.
        max_pixels: refuse a larger height x width before any pixel is decoded.

    Returns:
        ``"rgb"``: (H, W, 3) uint8. ``"index"``: (H, W) uint8, uint16 or int32.

    Raises:
        UserError: missing, not an image of these formats, truncated or damaged, over the cap, or not convertible.
    """
    path = Path(path)
    with _opened(path, max_pixels) as image:
        stretch = _grey_stretch(image)
        if upright:
            image = ImageOps.exif_transpose(image)  # noqa: PLW2901 - the opened file is closed by the context
        return _to_rgb(image, path) if mode == "rgb" else _to_indices(image, path, stretch)


def read_mirrored(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file, mirrored left to right.

    Raises:
        UserError: as :func:`read_image`.
    """
    mirrored: NDArray[np.uint8] = np.ascontiguousarray(read_image(path)[:, ::-1])
    return mirrored


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of the stored frame, from the file's header alone.

    Raises:
        UserError: missing, not an image of the known formats, or over the cap.
    """
    with _opened(path, max_pixels) as image:
        return image.height, image.width


def image_header(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """What a file says about itself, without decoding a pixel.

    Raises:
        UserError: as :func:`image_size`.
    """
    with _opened(path, max_pixels) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        return ImageHeader(
            size=(image.height, image.width),
            format="JPEG" if image.format in {None, "MPO"} else str(image.format),
            mode=image.mode,
            orientation=orientation if orientation in range(1, 9) else 1,
        )


def list_images(path: Path | Sequence[Path]) -> list[Path]:
    """Image files of a file, a folder or several: folders recursively and sorted, hidden files left out.

    A file named outright is taken whatever its suffix.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    if not isinstance(path, Path):
        return [found for one in path for found in list_images(one)]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no file or folder {path}; check the path.")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not found:
        known = ", ".join(sorted(SUFFIXES))
        raise UserError(f"The folder {path} holds no image; files named {known} are looked for.")
    return found


def confined(root: Path | str, relative: Path | str) -> Path:
    """Absolute path of ``root / relative``, refused if it leaves ``root``.

    Names inside annotation files are other people's input: ``..``, absolute paths and symbolic links (the file
    itself or a folder on the way) must not reach outside.

    Raises:
        UserError: the root or the name is empty, or the resolved path is not below the root.
    """
    if not str(root):
        raise UserError(f"No folder is given for the file name {str(relative)!r}; name the dataset's image folder.")
    base = os.path.realpath(root)
    name = str(relative)
    outside = not name or "\0" in name or Path(name).is_absolute()
    target = base if outside else os.path.realpath(Path(base, name))
    if outside or not target.startswith(base.rstrip(os.sep) + os.sep):
        raise UserError(f"The file name {name!r} leads outside the folder {root}; correct it or move the file inside.")
    return Path(target)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The opened file, header parsed and size checked; decoding errors inside the block become UserErrors."""
    if not path.is_file():
        raise UserError(f"There is no image file {path}; check the path.")
    try:
        with _open(path, max_pixels) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"The image {path} has {image.width} x {image.height} pixels, more than the cap of {max_pixels}; "
                    "make it smaller, or raise the cap with `weakly predict --max_pixels` if you trust the file."
                )
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(
            f"The image {path} has more pixels than the cap of {max_pixels}; "
            "make it smaller, or raise the cap with `weakly predict --max_pixels` if you trust the file."
        ) from error
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The image {path} cannot be read ({reason.rstrip('.')}); "
            f"replace or remove it ({', '.join(FORMATS)} are supported)."
        ) from error


def _open(path: Path, max_pixels: int) -> Image.Image:
    # Pillow has a limit of its own (it refuses twice Image.MAX_IMAGE_PIXELS), which only a user's higher cap lifts.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or max_pixels <= 2 * limit:
        return Image.open(path, formats=FORMATS)
    with _pillow_limit:
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise UserError(f"The image {path} stores floating-point values; convert it to 8 or 16 bits.")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _sixteen_to_eight(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def _sixteen_to_eight(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """(H, W) values of a 16-bit range -> uint8, 0 -> 0 and 65535 -> 255."""
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise UserError(f"The image {path} stores 32-bit values; convert it to 8 or 16 bits.")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_indices(image: Image.Image, path: Path, stretch: int) -> NDArray[Any]:
    if image.mode not in {"P", "L", "1", "I"} and not image.mode.startswith("I;16"):
        raise UserError(
            f"The label map {path} is a colour picture (mode {image.mode}); "
            "save it as a palette or grey PNG whose values are category ids."
        )
    values = np.array(image)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values // stretch if stretch > 1 else values.astype(values.dtype.newbyteorder("="))


def _grey_stretch(image: Image.Image) -> int:
    """The factor by which Pillow will multiply the stored grey values (known only before decoding)."""
    tiles = getattr(image, "tile", None) or [None]
    arguments = tiles[0][3] if tiles[0] else ""
    raw_mode = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    return _GREY_STRETCH.get(raw_mode, 1) if isinstance(raw_mode, str) else 1
