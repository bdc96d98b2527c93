"""One picture: encoded bytes -> uint8 [H, W, C], its centre, its mirror image.

`decode` is the one decoder, of training images and of those that metrics are computed from; docs/pictures.md has its
decisions as a table.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.files.opening import one_line

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL knows others, some of which run programs
MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "F")  # how the modes begin that have more than 8 bits a channel


def decode(raw: bytes, channels: int) -> np.ndarray:
    """The picture in `raw` (PNG, JPEG, ...) as uint8 [H, W, channels]: upright, transparency laid on white.

    Upright: turned and mirrored as its EXIF orientation says. Palettes, CMYK, YCbCr and LAB become RGB, colour becomes
    grey by ITU-R 601 and grey three equal channels, 1, 2 and 4 bits span 0..255. Of several pictures in a file the
    first is read, and a colour profile is not applied.
    Raises ValueError, in one line, for bytes that cannot be decoded and for more than 8 bits a channel, which would be
    cut.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            if _is_deep(picture):
                raise ValueError(f"mode {picture.mode} of more than 8 bits a channel; expected at most 8")
            picture = _upright(picture)
            if picture.mode == "LAB":  # of which PIL makes no grey
                picture = picture.convert("RGB")
            if picture.has_transparency_data:
                picture = Image.fromarray(on_white(np.asarray(picture.convert("RGBA"))))
            return _with_channels(np.asarray(picture.convert(MODES[channels])))
    except UnidentifiedImageError:
        raise ValueError(f"not a readable picture (none of {', '.join(FORMATS)})") from None
    except Exception as error:  # decoders of damaged bytes fail in ways that PIL does not list
        raise ValueError(f"not a readable picture ({one_line(error)})") from None


def _is_deep(picture: Image.Image) -> bool:
    """Whether a channel has more than 8 bits. PIL opens 16-bit colour under the modes of 8 bits, and would cut it: the
    depth is in what it tells its decoder, "RGB;16B" of PNG and TIFF, ("RGB", 65535) of PPM."""
    if picture.mode.startswith(DEEP):
        return True
    if picture.format == "BMP" or not picture.tile:  # 16 bits of a BMP are those of a pixel
        return False
    said = picture.tile[0].args
    said = said if isinstance(said, tuple) else (said,)
    if picture.tile[0].codec_name == "ppm":
        return said[-1] > 255
    return any(isinstance(one, str) and ";16" in one for one in said)


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # whose errors are of the pixels
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # an EXIF block that cannot be read turns nothing, here as in every viewer
        return picture


def on_white(image: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 4] -> uint8 [..., H, W, 3]: a rgb + (1 - a) white, rounded."""
    rgb, a = image[..., :3].astype(np.uint32), image[..., 3:].astype(np.uint32)
    return ((rgb * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [size, size, C]: shrunk or enlarged until the shorter side fits, then its centre.

    Halved with a box filter for as long as the shorter side stays at least `size` (a bicubic filter alone would alias
    there), brought to `size` with a bicubic filter, and cut; an odd excess leaves the extra row below and right.
    Reference statistics of ImageNet are of pictures cropped like this, so that any other way moves FID.
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
    """[H, W, C] with left and right exchanged."""
    return image[:, ::-1]


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels
