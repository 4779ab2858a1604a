"""Golden answers that somebody else packed: read in bounded memory, or one error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.golden import Golden
from vggkeras.containers import UNREADABLE

N, H, W, CLASSES = 2, 8, 6, 4


def golden(channels: int = 3, **changes) -> Golden:
    rng = np.random.default_rng(0)
    made = Golden(
        rng.integers(0, 256, (N, H, W, channels), np.uint8),
        np.array([0, 1]),
        rng.random((N, CLASSES), np.float32),
        rng.random((N, CLASSES), np.float32),
        {"decode": rng.random(3, np.float32), "block1_conv1": rng.random(5, np.float32)},
        b"photograph",
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    "packed", [golden(), golden(1), golden(5), golden(labels=None, layers={}, original=None)]
)
def test_what_is_packed_is_unpacked_unchanged(packed):
    unpacked = Golden.unpack(packed.pack())
    for field in dataclasses.fields(Golden):
        before, after = getattr(packed, field.name), getattr(unpacked, field.name)
        np.testing.assert_equal(after, before)


def npy(header: str, content: bytes = b"") -> bytes:
    """A .npy file whose header says anything."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


def with_member(name: str, content: bytes, packed: bytes, method=zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(target, "w") as archive:
        for member in source.namelist():
            if member != name:
                archive.writestr(member, source.read(member))
        archive.writestr(name, content, method)
    return target.getvalue()


def array(**values) -> bytes:
    stream = io.BytesIO()
    np.save(stream, *values.values())
    return stream.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }"
OBJECTS = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
DAMAGE = {
    "a trillion rows": with_member("answers.npy", npy(HUGE), golden().pack()),
    "objects": with_member("answers.npy", npy(OBJECTS, b"8 bytes."), golden().pack()),
    "a header to recurse in": with_member("answers.npy", npy("-" * 9000 + "1"), golden().pack()),
    "a bomb": with_member("answers.npy", bytes((1 << 28) + 1), golden().pack()),
    "another compression": with_member("a.npy", b"", golden().pack(), zipfile.ZIP_LZMA),
    "a PNG of another size": with_member(
        "shape.npy", array(shape=np.array([4, H, W, 3])), golden().pack()
    ),
    "fewer answers": golden(answers=np.zeros((1, CLASSES), np.float32)).pack(),
    "images of floats": golden(5, images=np.zeros((N, H, W, 5), np.float32)).pack(),
    "labels of another count": golden(labels=np.array([1])).pack(),
    "means of no layer": with_member("sizes.npy", array(sizes=np.array([3, -1])), golden().pack()),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_arrays_that_do_not_fit_are_refused_before_memory_is_taken(what):
    with pytest.raises(UNREADABLE):
        Golden.unpack(DAMAGE[what])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_the_golden_answers_or_an_error(data):
    packed = bytearray(golden().pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UNREADABLE):
        Golden.unpack(bytes(packed))
