"""Read the arrays of a .npz file that somebody else may have made."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO

import numpy as np

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

HEADER_SIZE = 512  # characters; NumPy parses what it reads there as Python, deep nesting too


def read_npz(file: IO[bytes], largest: int) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file by name, read-only.

    Nothing is inflated or allocated before the sizes that the file states are known to fit.

    Args:
        file: the .npz file.
        largest: how many bytes all arrays may have together.

    Raises:
        ValueError: too many bytes, an array that does not fit its member, objects; or what
            `zipfile` raises for a damaged archive.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
            raise ValueError("compressed by another method than NumPy's")
        if (size := sum(member.file_size for member in members)) > largest:
            raise ValueError(f"arrays of {size:,} bytes: expected {largest:,} at most")
        return {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}


def _array(content: bytes) -> np.ndarray:
    """Return the array of a .npy file, over its bytes."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"an array of version {version}")
    shape, is_fortran, dtype = HEADERS[version](stream, max_header_size=HEADER_SIZE)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size != len(content) - stream.tell():
        raise ValueError(f"an array of shape {shape} and {dtype} in {len(content):,} bytes")
    array = np.frombuffer(content, dtype, offset=stream.tell()) if size else np.empty(0, dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
