"""Pictures: the only place that converts between files, pixels and tensors.

On the data's way: at both ends. Files become pixels for the cache; tensors become pictures again.

    formats   what a file is             opening   a file becomes an upright RGB picture
    colors    any mode becomes sRGB      pixels    squares, and tensors of them
    writing   pixels become a file

Only the functions that need torch import it, so that reading pictures starts quickly.
"""

from tessella.images.colors import find_alpha, ignores_profile, to_rgb
from tessella.images.formats import IMAGE_SUFFIXES, READ_SUFFIXES, ImageError
from tessella.images.opening import (
    OpenedImage,
    decode_image,
    open_image,
    read_image,
    read_with_transparency,
)
from tessella.images.pixels import Pixels, fit_square, round_to_bytes, to_float, to_uint8
from tessella.images.writing import encode_picture, read_png_texts, save_png

__all__ = [
    "IMAGE_SUFFIXES",
    "READ_SUFFIXES",
    "ImageError",
    "OpenedImage",
    "Pixels",
    "decode_image",
    "encode_picture",
    "find_alpha",
    "fit_square",
    "ignores_profile",
    "open_image",
    "read_image",
    "read_png_texts",
    "read_with_transparency",
    "round_to_bytes",
    "save_png",
    "to_float",
    "to_rgb",
    "to_uint8",
]
