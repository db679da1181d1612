"""Reading image files: one colour rule, one cap, one frame; names that cannot leave their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakly.data.images import confined, image_header, image_size, list_images, read_image, read_mirrored
from weakly.errors import UserError

Save = Callable[..., Path]

# Four quadrants of different colour, 16 x 32: any rotation or flip shows.
QUADRANTS = np.kron(
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8), np.ones((8, 16, 1), np.uint8)
)


def with_orientation(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(QUADRANTS).save(path, exif=exif)
    return path


STORED_TO_UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", STORED_TO_UPRIGHT)
def test_labels_see_the_stored_frame_and_people_the_upright_one(tmp_path: Path, orientation: int) -> None:
    path = with_orientation(tmp_path / "o.png", orientation)
    assert np.array_equal(read_image(path), QUADRANTS)
    assert np.array_equal(read_image(path, upright=True), STORED_TO_UPRIGHT[orientation](QUADRANTS))
    assert image_size(path) == (16, 32)
    assert image_header(path).orientation == orientation


def test_a_path_may_be_a_text(tmp_path: Path, save_image: Save) -> None:
    """As `import weakly` shows it: read_image("cat.jpg")."""
    path = save_image(tmp_path / "cat.png")
    assert np.array_equal(read_image(str(path)), read_image(path))
    with pytest.raises(UserError, match="There is no image file nowhere.jpg"):
        read_image("nowhere.jpg")


def test_nonsense_orientation_counts_as_upright(tmp_path: Path) -> None:
    assert image_header(with_orientation(tmp_path / "o.png", 42)).orientation == 1


def test_mirrored_left_to_right(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(QUADRANTS).save(path)
    assert np.array_equal(read_mirrored(path), QUADRANTS[:, ::-1])


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 77).save(tmp_path / "g.png")
    assert read_image(tmp_path / "g.png").tolist() == [[[77] * 3] * 3] * 2


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[0, 0].tolist() == [10, 20, 30]
    assert read_image(tmp_path / "p.png", mode="index")[0, 0] == 1


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red = read_image(tmp_path / "c.jpg")[8, 8]
    assert red[0] > 240
    assert red[1] < 15
    assert red[2] < 15


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"d.{suffix}")
    assert read_image(tmp_path / f"d.{suffix}")[0, :, 1].tolist() == [0, 1, 128, 255]
    assert read_image(tmp_path / f"d.{suffix}", mode="index").tolist() == values.tolist()


@pytest.mark.parametrize("values", [np.full((2, 2), 70_000, np.int32), np.full((2, 2), 0.5, np.float32)])
def test_thirty_two_bits_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "d.tif")
    with pytest.raises(UserError, match="8 or 16 bits"):
        read_image(tmp_path / "d.tif")


@pytest.mark.parametrize(("mode", "pixel"), [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str, pixel: tuple[int, ...]) -> None:
    Image.new(mode, (2, 2), pixel).save(tmp_path / "t.png")
    assert read_image(tmp_path / "t.png").min() == 255


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_label_maps_of_few_bits_keep_their_values(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(grey_png(np.array([[0, 1, (1 << bits) - 1]], np.uint8), bits))
    assert read_image(path, mode="index").tolist() == [[0, 1, (1 << bits) - 1]]


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    flags = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in flags)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_colour_picture_is_no_label_map(tmp_path: Path, save_image: Save) -> None:
    with pytest.raises(UserError, match=r"m\.png is a colour picture.*palette or grey PNG"):
        read_image(save_image(tmp_path / "m.png"), mode="index")


def test_format_is_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "n.JPEG", format="PNG")
    assert read_image(tmp_path / "n.JPEG")[0, 0].tolist() == [255, 0, 0]
    assert image_header(tmp_path / "n.JPEG").format == "PNG"


def test_non_ascii_names(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "Vögel 鸟" / "ñandú.png")
    assert read_image(path).shape == (20, 30, 3)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("name", ["t.jpg", "t.png", "t.webp", "t.bmp", "t.tif"])
def test_truncated_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{name} cannot be read .*replace or remove it"):
        read_image(path)


def test_other_formats_and_plain_text_are_refused(tmp_path: Path) -> None:
    Image.new("P", (4, 4)).save(tmp_path / "g.gif")
    (tmp_path / "x.png").write_text("no picture")
    for name in ("g.gif", "x.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            read_image(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match="There is no image file"):
            read_image(path)


def test_pixel_cap_names_file_and_option(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "big.png")
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"big\.png has 30 x 20 pixels, more than the cap of 599.*--max_pixels"):
        read_image(path, max_pixels=599)


def test_a_bomb_is_refused_by_default_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.bmp"
    Image.new("1", (8, 8)).save(path)
    header = bytearray(path.read_bytes())
    header[18:22] = header[22:26] = (40_000).to_bytes(4, "little")  # 1.6 gigapixels, says the header
    path.write_bytes(header)
    with pytest.raises(UserError, match=r"bomb\.bmp.*cap of 100000000.*--max_pixels"):
        read_image(path)
    # A user's higher cap counts, and Pillow's own limit is as before: now the file is merely truncated.
    limit = Image.MAX_IMAGE_PIXELS
    assert image_size(path, max_pixels=2_000_000_000) == (40_000, 40_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_folders_are_listed_recursively_sorted_and_without_hidden_or_other_files(
    tmp_path: Path, save_image: Save
) -> None:
    expected = [save_image(tmp_path / name) for name in ("a.png", "b/c.JPG", "d.jpeg")]
    save_image(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("")
    assert list_images(tmp_path) == expected
    assert list_images([expected[2], tmp_path / "b"]) == [expected[2], expected[1]]


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no image"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="no file or folder .*nowhere"):
        list_images(tmp_path / "nowhere")


def test_names_inside_the_root_are_joined(tmp_path: Path, save_image: Save) -> None:
    inside = save_image(tmp_path / "root" / "sub" / "a.png")
    (tmp_path / "root" / "link.png").symlink_to(inside)
    assert confined(tmp_path / "root", "sub/a.png") == inside
    assert confined(tmp_path / "root", "sub/../sub/a.png") == inside
    assert confined(tmp_path / "root", "link.png") == inside


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "", ".", "a\0b.png"])
def test_names_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="leads outside the folder"):
        confined(tmp_path / "root", name)


def test_absolute_names_sibling_prefixes_and_links_are_refused(tmp_path: Path, save_image: Save) -> None:
    secret = save_image(tmp_path / "root-secret" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "leaf.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    for name in (str(secret), "../root-secret/a.png", "leaf.png", "folder/a.png"):
        with pytest.raises(UserError, match="leads outside the folder"):
            confined(root, name)


def test_an_empty_root_is_refused() -> None:
    with pytest.raises(UserError, match="No folder is given"):
        confined("", "a.png")
