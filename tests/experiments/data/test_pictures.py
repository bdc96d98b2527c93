"""The one decoder of pictures: every mode of PIL and every EXIF orientation, for training and for metrics alike.

Truth is the pixels that a picture was made of. Lossless formats give them back exactly.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import pictures
from experiments.fid import BadInput, images

WHITE = (255, 255, 255)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (3, 5), np.uint8)
COLOUR = RNG.integers(0, 256, (3, 5, 3), np.uint8)
ALPHA = np.array([[0, 255, 51, 0, 255]] * 3, np.uint8)
BITS = RNG.integers(0, 2, (3, 5), np.uint8) * np.uint8(255)
INDEX = np.array([[0, 1, 2, 3, 0]] * 3, np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 0], [1, 2, 255]], np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """a rgb + (1 - a) white in real numbers, rounded to the nearest."""
    a = alpha[..., None] / 255
    return np.floor(a * rgb + (1 - a) * 255 + 0.5).astype(np.uint8)


def paletted(mode: str = "P") -> Image.Image:
    picture = Image.fromarray(INDEX, "P")
    picture.putpalette(PALETTE.tobytes())
    if mode == "PA":
        picture = Image.merge("PA", (Image.fromarray(INDEX), Image.fromarray(ALPHA)))
        picture.putpalette(PALETTE.tobytes())
    return picture


def hidden_by_colour(rgb: np.ndarray, colour) -> np.ndarray:
    """What a tRNS chunk says of grey and RGB pictures: this colour is transparent."""
    return np.where((rgb == colour).all(-1, keepdims=True), np.uint8(255), rgb)


CASES = {
    "1": (encoded(Image.fromarray(BITS).convert("1")), three(BITS)),
    "L": (encoded(Image.fromarray(GREY)), three(GREY)),
    "L with tRNS": (
        encoded(Image.fromarray(GREY), transparency=int(GREY[1, 1])),
        hidden_by_colour(three(GREY), GREY[1, 1]),
    ),
    "LA": (encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), over_white(three(GREY), ALPHA)),
    "P": (encoded(paletted()), PALETTE[INDEX]),
    "P with tRNS": (
        encoded(paletted(), transparency=bytes([255, 0, 51, 255])),
        over_white(PALETTE[INDEX], np.array([255, 0, 51, 255], np.uint8)[INDEX]),
    ),
    "PA": (encoded(paletted("PA"), "TIFF"), over_white(PALETTE[INDEX], ALPHA)),
    "RGB": (encoded(Image.fromarray(COLOUR)), COLOUR),
    "RGB with tRNS": (
        encoded(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[2, 3]))),
        hidden_by_colour(COLOUR, COLOUR[2, 3]),
    ),
    "RGBA": (encoded(Image.fromarray(np.dstack([COLOUR, ALPHA]))), over_white(COLOUR, ALPHA)),
    "RGBA in WebP": (
        encoded(Image.fromarray(np.dstack([COLOUR, ALPHA])), "WEBP", lossless=True, exact=True),
        over_white(COLOUR, ALPHA),
    ),
    "CMYK": (  # without ink: paper; all ink of one kind: its complement
        encoded(Image.fromarray(np.uint8([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]]), "CMYK"), "TIFF"),
        np.uint8([[WHITE, (0, 255, 255), (0, 0, 0)]]),
    ),
    "YCbCr": (  # without chroma: grey; 76, 85, 255 is pure red to within its rounding
        encoded(Image.fromarray(np.uint8([[[0, 128, 128], [90, 128, 128], [255, 128, 128]]]), "YCbCr"), "TIFF"),
        np.uint8([[(0, 0, 0), (90, 90, 90), WHITE]]),
    ),
    "grey of 3 bits": (b"P5\n4 1\n7\n" + bytes([0, 1, 6, 7]), three(np.uint8([[0, 36, 219, 255]]))),
}


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, by hand: PIL opens all but grey ones under the modes of 8 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(4 * channels)) for _ in range(2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


DEEP = {
    "I;16 in PNG": encoded(Image.fromarray(np.full((3, 3), 1000, np.uint16))),
    "I;16 in TIFF": encoded(Image.fromarray(np.full((3, 3), 1000, np.uint16)), "TIFF"),
    "I": encoded(Image.fromarray(np.full((3, 3), 1000, np.int32)), "TIFF"),
    "F": encoded(Image.fromarray(np.full((3, 3), 0.5, np.float32)), "TIFF"),
    "RGB of 16 bits": deep_png(2, 3),
    "grey and alpha of 16 bits": deep_png(4, 2),
    "RGBA of 16 bits": deep_png(6, 4),
    "PPM of 16 bits": b"P6\n2 2\n65535\n" + bytes(24),
    "PGM of 10 bits": b"P5\n2 2\n1023\n" + bytes(8),
}


def both(tmp_path, raw: bytes, suffix: str = ".png") -> tuple[np.ndarray, np.ndarray]:
    """What the reader of training images and that of images for metrics see of one file."""
    (tmp_path / f"a{suffix}").write_bytes(raw)
    (block,) = images.open_images(tmp_path).blocks(8)
    return data.open_source(str(tmp_path))[0]["image"], block[0]


def test_lab_is_read_as_colour_and_as_grey():
    """Without colour (a = b = 0): lightness 0 is black, 100 white, to the rounding of the colour library."""
    raw = encoded(Image.fromarray(np.uint8([[[0, 0, 0], [255, 0, 0]]]), "LAB"), "TIFF")
    for channels in (1, 3):
        found = pictures.decode(raw, channels)
        assert found.shape == (1, 2, channels)
        np.testing.assert_allclose(found[0], [[0] * channels, [255] * channels], atol=1)


@pytest.mark.parametrize("name", CASES)
def test_every_mode_has_one_truth(tmp_path, name):
    raw, truth = CASES[name]
    for found in both(tmp_path, raw):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("name", CASES)
def test_as_grey_it_is_the_luma_of_the_colours(name):
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B, rounded."""
    raw, truth = CASES[name]
    luma = truth.astype(float) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(pictures.decode(raw, 1)[..., 0], luma, atol=0.51)


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_by_both(tmp_path, name):
    with pytest.raises(BadInput, match=r"a.png: not a readable picture \(mode .* of more than 8 bits a channel"):
        both(tmp_path, DEEP[name])
    with pytest.raises(ValueError, match=r"a.png: not a readable picture \(mode .* of more than 8 bits a channel"):
        data.open_source(str(tmp_path))[0]


# what undoes each orientation, EXIF 2.3, 4.6.4: "row 0 is the visual top" and so on, as places in [rows, columns]
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_pictures_stand_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    for found in both(tmp_path, encoded(Image.fromarray(COLOUR), kind, exif=exif, **options)):
        np.testing.assert_array_equal(found, UPRIGHT[orientation](COLOUR))


def test_a_turned_picture_keeps_its_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encoded(paletted(), transparency=bytes([255, 0, 51, 255]), exif=exif)
    np.testing.assert_array_equal(pictures.decode(raw, 3), UPRIGHT[6](CASES["P with tRNS"][1]))


def test_an_exif_block_that_is_noise_turns_nothing():
    raw = encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0noise")
    np.testing.assert_array_equal(pictures.decode(raw, 3), COLOUR)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(ValueError, match="not a readable picture"):
        pictures.decode(encoded(Image.fromarray(COLOUR), "EPS"), 3)
