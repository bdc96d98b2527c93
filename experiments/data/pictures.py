"""Decodes, crops and mirrors single pictures, as uint8 [H, W, C].

Training and metrics decode pictures by the same `decode`. The table in docs/pictures.md lists its decisions.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.files.opening import one_line

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of PIL's other formats some run programs
MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "F")  # the names of modes with more than 8 bits a channel begin with these


def decode(raw: bytes, channels: int) -> np.ndarray:
    """Decodes the picture in `raw` (PNG, JPEG, ...) to uint8 [H, W, channels].

    The picture is turned and mirrored as its EXIF orientation says. Transparent pixels are laid on white. Palettes,
    CMYK, YCbCr and LAB become RGB; colour becomes grey by ITU-R 601; grey becomes three equal channels; 1, 2 and 4
    bits are scaled to 0..255. Only the first picture of a file is read. Colour profiles are ignored.
    Raises ValueError for bytes that cannot be decoded, and for more than 8 bits a channel, which would lose bits.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            if _is_deep(picture):
                raise ValueError(f"mode {picture.mode} of more than 8 bits a channel; expected at most 8")
            picture = _upright(picture)
            if picture.mode == "LAB":  # PIL cannot convert it to grey directly
                picture = picture.convert("RGB")
            if picture.has_transparency_data:
                picture = Image.fromarray(on_white(np.asarray(picture.convert("RGBA"))))
            return _with_channels(np.asarray(picture.convert(MODES[channels])))
    except UnidentifiedImageError:
        raise ValueError(f"not a readable picture (none of {', '.join(FORMATS)})") from None
    except Exception as error:  # PIL does not document what its decoders raise for damaged bytes
        raise ValueError(f"not a readable picture ({one_line(error)})") from None


def _is_deep(picture: Image.Image) -> bool:
    """Returns whether a channel has more than 8 bits. PIL gives 16-bit colour a mode of 8 bits and would cut it; only
    its decoder's arguments show the depth: "RGB;16B" for PNG and TIFF, ("RGB", 65535) for PPM."""
    if picture.mode.startswith(DEEP):
        return True
    if picture.format == "BMP" or not picture.tile:  # a BMP counts the bits of a pixel, not of a channel
        return False
    arguments = picture.tile[0].args
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    if picture.tile[0].codec_name == "ppm":
        return arguments[-1] > 255
    return any(isinstance(one, str) and ";16" in one for one in arguments)


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # outside the try, so that damaged pixels are an error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # like every viewer, we ignore an EXIF block that cannot be read
        return picture


def on_white(image: np.ndarray) -> np.ndarray:
    """Returns a rgb + (1 - a) white, rounded, for RGBA images uint8 [..., H, W, 4]; uint8 [..., H, W, 3]."""
    rgb, a = image[..., :3].astype(np.uint32), image[..., 3:].astype(np.uint32)
    return ((rgb * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image uint8 [H, W, C] so that its shorter side is `size`, and cuts out the centre [size, size, C].

    A box filter halves the image while its shorter side stays at least `size` (a bicubic filter alone would alias). A
    bicubic filter then resizes it to `size`. If an odd number of rows or columns is cut off, one more is cut at the
    bottom or right. Any other crop changes FID, since the reference statistics of ImageNet use this one.
    Source: the preprocessing of Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, released code.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    return _with_channels(np.asarray(picture.crop((left, top, left + size, top + size))))


def mirrored(image: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, C] with left and right exchanged."""
    return image[:, ::-1]


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels
