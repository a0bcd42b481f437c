"""Image files of strangers, decoded once what they claim of themselves is found to be reasonable.

OpenCV decodes them; it allocates what a header or a chunk claims, up to gigabytes for a file of 300 bytes. It drops
transparency, or else the orientation, so that images with any are for Pillow.
"""

import io
import warnings
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

KINDS = ("PNG", "JPEG", "WEBP", "BMP")
# Far more than photographs have: what claims more is for exhausting the memory.
MOST_BYTES, MOST_PIXELS = 2**28, 2**26
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong is said once, by the caller
PNG = b"\x89PNG\r\n\x1a\n"


def decode_image(content: bytes, kinds=KINDS, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns uint8 (h, w, 3) RGB, upright as its EXIF says; size: the (width, height) that alone will do.

    Grey is repeated, a palette looked up, of 16 bits the upper eight are taken; what is transparent shows white behind it,
    as it does on a page. Raises ValueError where it is no whole image of these kinds, of that size or of at most MOST_PIXELS.
    """
    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(content), formats=kinds) as header:
            width, height = header.size
            # 16 bits of grey with one of its levels transparent is more than Pillow can convert
            transparent = header.has_transparency_data and header.mode != "I;16"
    except PIL.Image.DecompressionBombError as error:
        raise ValueError("it claims far too many pixels") from error
    except (OSError, SyntaxError) as error:
        raise ValueError("its header cannot be read") from error
    if size not in (None, (width, height)):
        raise ValueError(f"it is {width}×{height}, expected {size[0]}×{size[1]}")
    if width * height > MOST_PIXELS:
        raise ValueError(f"it claims {width}×{height} pixels")
    if content.startswith(PNG):
        _check_chunks(content)
    if transparent:
        return _decode_over_white(content, kinds)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError("OpenCV cannot decode it") from error
    if image is None:
        raise ValueError("it is not whole")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_over_white(content: bytes, kinds) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(content), formats=kinds) as image:
            PIL.ImageOps.exif_transpose(image, in_place=True)
            image = image.convert("RGBA")
            white = PIL.Image.new("RGB", image.size, "white")
            white.paste(image, mask=image)
            return np.array(white)
    except Exception as error:  # of many kinds: its parsers meet a stranger's bytes in Python
        raise ValueError("Pillow cannot decode it") from error


def _check_chunks(content: bytes) -> None:
    """Raises ValueError unless every chunk of a PNG lies within the file and has its checksum, up to its end chunk.

    libpng checks that, too, but says what it finds on stderr.
    """
    at, kind, view = len(PNG), b"", memoryview(content)
    while kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        at += 12 + length  # length, kind, data, checksum
        if at > len(content):
            raise ValueError("a chunk reaches beyond its end")
        if zlib.crc32(view[at - 8 - length : at - 4]) != int.from_bytes(content[at - 4 : at], "big"):
            raise ValueError("a chunk does not match its checksum")
