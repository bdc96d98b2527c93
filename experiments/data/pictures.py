"""One picture: encoded bytes -> uint8 [H, W, C], its centre, its mirror image."""

import io
import struct

import numpy as np
from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MODES = {1: "L", 3: "RGB"}
# what PIL raises on bytes that are no picture, or only part of one
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def decode(raw: bytes, channels: int) -> np.ndarray:
    """The picture in `raw` (PNG, JPEG, ...) as uint8 [H, W, channels], transparency laid on white.

    Raises ValueError, in one line, for bytes that cannot be decoded and for more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"its mode is {picture.mode}; expected at most 8 bits a channel")
            if picture.has_transparency_data:
                pixels = on_white(np.asarray(picture.convert("RGBA")))
                picture = Image.fromarray(pixels)
            return _with_channels(np.asarray(picture.convert(MODES[channels])))
    except BROKEN as error:
        raise ValueError(f"not a readable picture ({' '.join(str(error).split())})") from None


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
