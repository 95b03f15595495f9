"""Pixel rows -> PNG bytes, assembled from pieces, so that rows shared by many images are compressed once.

ISA-L does the compression; `benchmarks/plots.py` times it as part of a plot. Only the features that
`tsd.plots.plotter` needs: 8 bits per channel. https://www.w3.org/TR/png-3/
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

GREY, PALETTE, RGBA = 0, 3, 6  # PNG colour types
LEVEL = 0  # ISA-L's fastest


class Piece(NamedTuple):
    """Compressed rows that can be concatenated with other pieces."""

    deflated: bytes
    adler: int
    length: int


def deflate(rows: npt.NDArray[np.uint8], last: bool = False) -> Piece:
    """Compress rows, each with its filter type in front. `last` ends the stream.

    rows: (rows, 1 + bytes per row) uint8, contiguous.
    """
    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
    packed = packer.compress(rows) + packer.flush(isal_zlib.Z_FINISH if last else isal_zlib.Z_FULL_FLUSH)
    return Piece(packed, isal_zlib.adler32(rows), rows.size)


def filter_up(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Apply PNG's Up filter: each row minus the one above, with the filter type in front. Repeated rows become 0.

    pixels: (height, bytes per row) uint8. Returns (height, 1 + bytes per row) uint8.
    """
    return np.insert(np.diff(pixels, axis=0, prepend=np.uint8(0)), 0, 2, axis=1)


def head(width: int, height: int, kind: int, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    """Everything before the pixel data: signature, header, palette. palette: (256, 3) uint8, for `PALETTE`."""
    size = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + (b"" if palette is None else _chunk(b"PLTE", palette.tobytes()))


def body(pieces: Sequence[Piece]) -> bytes:
    """The pixel data and the end of the file. The last piece must have been compressed with `last`."""
    low, high = 1, 0  # the two halves of Adler-32, combined as in zlib's adler32_combine
    for piece in pieces:
        high += (piece.adler >> 16) + piece.length * (low - 1)
        low += (piece.adler & 0xFFFF) - 1
    check = struct.pack(">HH", high % 65521, low % 65521)
    stream = b"".join([b"\x78\x01", *(piece.deflated for piece in pieces), check])
    return _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk: length, name, content, CRC-32."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", isal_zlib.crc32(name + content))
