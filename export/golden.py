"""Golden images, and the answers that a right file gives to them.

A few travel inside every exported file (`Golden`); more lie beside it in golden.npz (`GoldenFile`).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggkeras.arrays import read_npz
from vggkeras.card import Form
from vggkeras.certificate import Entry
from vggkeras.containers import GOLDEN
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import form_path

ORIGINAL_BYTES = 1 << 18  # a larger original photograph is made smaller before it travels
SHOWN_ALIKE = (b"\xff\xd8\xff", b"\x89PNG")  # by every decoder: how such files begin
MOST_INSIDE, MOST_BESIDE = 1 << 28, 1 << 30  # bytes of all arrays, in a file and in golden.npz
UNKNOWN = -1  # the label of an image without one


@dataclass(frozen=True)
class Golden:
    """The images that travel inside a file, and the answers to expect.

    In a file of features (Appendix B), `probabilities` and `answers` are features; of boxes
    (Appendix A), what the network gives, `[N, outputs]` or a map `[N, 1, 1, outputs]`.
    """

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int64 [N]
    probabilities: np.ndarray  # float32 [N, classes], of the Keras model
    answers: np.ndarray  # float32 [N, classes], of the file itself where it was made
    # layer -> mean of each channel of the Keras model's output for the first image, float32.
    # "decode": some pixels of the decoded photograph.
    layers: dict[str, np.ndarray]
    original: bytes | None  # the encoded photograph that the first image was cut from

    def pack(self) -> bytes:
        """Return the content of a compressed .npz file."""
        arrays: dict[str, Any] = {
            "probabilities": self.probabilities,
            "answers": self.answers,
            "labels": _known_or_unknown(self.labels, len(self.images)),
            "shape": np.array(self.images.shape),
            "layers": np.array(list(self.layers)),
            "means": np.concatenate([*self.layers.values(), np.empty(0, np.float32)]),
            "sizes": np.array([len(values) for values in self.layers.values()], np.int64),
        }
        n, h, w, c = self.images.shape
        if c in (1, 3):  # a PNG of all images, one below the other, is smaller
            png = io.BytesIO()
            column = Image.fromarray(self.images.reshape(n * h, w, c).squeeze())
            column.save(png, "PNG", optimize=True)
            arrays["png"] = np.frombuffer(png.getvalue(), np.uint8)
        else:
            arrays["images"] = self.images
        if self.original is not None:
            arrays["original"] = np.frombuffer(self.original, np.uint8)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        return content.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> Golden:
        """Return what `pack` packed; a damaged content raises what its reader raises."""
        arrays = read_npz(io.BytesIO(content), MOST_INSIDE)
        sizes = arrays["sizes"]
        if (sizes < 0).any() or sizes.sum() != arrays["means"].size:
            raise ValueError("the layers' means are not as many as their sizes say")
        means = np.split(arrays["means"], np.cumsum(sizes))[:-1]  # after the last there is nothing
        images = _images_of_png(arrays) if "png" in arrays else arrays["images"]
        _check(images, arrays["probabilities"], arrays["labels"])
        _check(images, arrays["answers"])
        return cls(
            images=images,
            labels=_none_if_unknown(arrays["labels"]),
            probabilities=arrays["probabilities"],
            answers=arrays["answers"],
            layers=dict(zip(arrays["layers"].tolist(), means, strict=True)),
            original=arrays["original"].tobytes() if "original" in arrays else None,
        )


def small_original(encoded: bytes, scale: int, exif: bool) -> bytes:
    """Return an encoded photograph that every decoder shows alike, and that is small enough.

    Where it is too large to travel, not a JPEG or PNG, or stored sideways, it becomes a JPEG whose
    smallest side is at most twice the `scale` that images are rescaled to.

    Args:
        encoded: an image file.
        scale: smallest side, px.
        exif: whether to turn it upright, as its EXIF data say.
    """
    image = decoding.decode(encoded, exif=exif)
    same = not exif or np.array_equal(image, decoding.decode(encoded))
    if len(encoded) <= ORIGINAL_BYTES and encoded.startswith(SHOWN_ALIKE) and same:
        return encoded
    smaller = augment.rescale(image, min(2 * scale, *image.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(smaller).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoded_samples(image: np.ndarray) -> np.ndarray:
    """Return 8 x 8 pixels of a photograph, to compare decoders by: float32 `[64 * channels]`."""
    rows, columns = (np.linspace(0, side - 1, 8).astype(int) for side in image.shape[:2])
    return image[rows[:, None], columns].astype(np.float32).ravel()


@dataclass(frozen=True)
class GoldenFile:
    """What golden.npz holds: images, and the Keras model's answers to them."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int64 [N]
    answers: np.ndarray  # float32 [N, classes], features [N, units], or boxes
    # (images, answers) of other sizes, which files of any size are proven on
    sizes: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def pack(self, form: Form) -> bytes:
        """Return golden.npz's content.

        Its arrays are images, labels (-1: unknown) and probabilities; images_HxW and
        probabilities_HxW of other sizes. golden.features.npz has features instead of probabilities,
        golden.boxes.npz and golden.dense_boxes.npz have boxes.
        """
        output = form.output_name
        arrays: dict[str, Any] = {
            "images": self.images,
            "labels": _known_or_unknown(self.labels, len(self.images)),
            output: self.answers,
        }
        for images, answers in self.sizes:
            size = f"{images.shape[1]}x{images.shape[2]}"
            arrays |= {f"images_{size}": images, f"{output}_{size}": answers}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        return content.getvalue()


def golden_path(folder: Path, form: Form = Form.CLASSIFIER) -> Path:
    """Return where a folder's golden answers lie: golden.npz of probabilities; golden.FORM.npz."""
    return folder / GOLDEN if form.gives_probabilities else form_path(folder / GOLDEN, form)


def shares(form: Form, entry: Entry) -> bool:
    """Return whether a certified file has the same golden answers beside it as those of a form."""
    return golden_path(Path(), form) == golden_path(Path(), entry.form)


def load_golden(folder: Path, form: Form = Form.CLASSIFIER) -> GoldenFile:
    """Return the golden images and answers that lie beside a folder's files.

    Raises:
        InputError (a ValueError): the file is missing or damaged.
    """
    path = golden_path(folder, form)
    return _unpack(path, _content(path), form)


def certified_golden(folder: Path, form: Form, entry: Entry) -> GoldenFile | None:
    """Return the golden images and answers that a file's entry in certificate.json names.

    Returns:
        None where an older certificate does not name them, and there are none.

    Raises:
        InputError (a ValueError): the file is missing or damaged, or not the one that is named.
    """
    path = golden_path(folder, form)
    if entry.golden_sha256 is None and not path.is_file():
        return None
    content = _content(path)
    if entry.golden_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise InputError(
            f"{path}: not what it was when the files were proven (sha256): restore it, or export "
            "again."
        )
    return _unpack(path, content, form)


def _content(path: Path) -> bytes:
    """Return the bytes of golden.npz; raise InputError where there are none, or too many."""
    if not path.is_file():
        raise InputError(
            f"There is no {path} to verify against: export with `python -m export`, which writes "
            "it."
        )
    if path.stat().st_size > MOST_BESIDE:
        raise InputError(f"{path} has more than {MOST_BESIDE:,} bytes: export again.")
    return path.read_bytes()


def _unpack(path: Path, content: bytes, form: Form) -> GoldenFile:
    """Return what `GoldenFile.pack` packed; raise InputError for anything else."""
    output = form.output_name
    try:
        arrays = read_npz(io.BytesIO(content), MOST_BESIDE)
        others = [name for name in arrays if name.startswith("images_")]
        sizes = [(arrays[name], arrays[name.replace("images", output)]) for name in others]
        _check(arrays["images"], arrays[output], arrays["labels"])
        for images, answers in sizes:
            _check(images, answers)
    except Exception as error:  # a damaged zip raises what its layer raises
        raise InputError(f"{path} cannot be read ({error}): export again.") from error
    labels = _none_if_unknown(arrays["labels"])
    return GoldenFile(arrays["images"], labels, arrays[output], tuple(sizes))


def _images_of_png(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return images from a PNG of all of them, one below the other."""
    n, height, width, channels = arrays["shape"].tolist()
    column = Image.open(io.BytesIO(arrays["png"].tobytes()), formats=["PNG"])
    if column.size != (width, n * height) or n * height * width * channels > MOST_INSIDE:
        raise ValueError(f"{n} images of {height} x {width} in a picture of {column.size}")
    return np.asarray(column).reshape(n, height, width, channels)


def _check(images: np.ndarray, answers: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Raise ValueError unless these are images, with an answer each, and a label."""
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}")
    if answers.dtype != np.float32 or answers.ndim not in (2, 4) or not answers.size:
        raise ValueError(f"answers are {answers.dtype} {list(answers.shape)}")
    if len(answers) != len(images):
        raise ValueError(f"{len(images)} images and {len(answers)} answers")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}")


def _known_or_unknown(labels: np.ndarray | None, count: int) -> np.ndarray:
    return np.full(count, UNKNOWN, np.int64) if labels is None else labels


def _none_if_unknown(labels: np.ndarray) -> np.ndarray | None:
    return None if (labels < 0).any() else labels
