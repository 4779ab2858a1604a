"""Golden images, and the answers that a right file gives to them.

A few travel inside every exported file (`Golden`); more lie beside it in golden.npz (`GoldenFile`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggkeras import files
from vggkeras.card import Form
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import form_path

GOLDEN = "golden.npz"
ORIGINAL_BYTES = 1 << 18  # a larger original photograph is made smaller before it travels
UNKNOWN = -1  # the label of an image without one


@dataclass(frozen=True)
class Golden:
    """The images that travel inside a file, and the answers to expect.

    In a file of features (Appendix B), `probabilities` and `answers` are features.
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
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if "png" in arrays:
                column = np.asarray(Image.open(io.BytesIO(arrays["png"].tobytes())))
                images = column.reshape(arrays["shape"])
            else:
                images = arrays["images"]
            means = np.split(arrays["means"], np.cumsum(arrays["sizes"])[:-1])
            return cls(
                images=images,
                labels=_none_if_unknown(arrays["labels"]),
                probabilities=arrays["probabilities"],
                answers=arrays["answers"],
                layers=dict(zip(arrays["layers"].tolist(), means, strict=True)),
                original=arrays["original"].tobytes() if "original" in arrays else None,
            )


def small_original(encoded: bytes, scale: int) -> bytes:
    """Return an encoded photograph, made smaller where it is too large to travel.

    It then is a JPEG whose smallest side is at most twice the `scale` that images are rescaled to.
    """
    if len(encoded) <= ORIGINAL_BYTES:
        return encoded
    image = decoding.decode(encoded)
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
    answers: np.ndarray  # float32 [N, classes], or features [N, units]
    # (images, answers) of other sizes, which files of any size are proven on
    sizes: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


def golden_path(folder: Path, form: Form = Form.CLASSIFIER) -> Path:
    """Return where a folder's golden answers lie: golden.npz; golden.features.npz of features."""
    return form_path(folder / GOLDEN, form) if form is Form.FEATURES else folder / GOLDEN


def save_golden(folder: Path, golden: GoldenFile, form: Form = Form.CLASSIFIER) -> None:
    """Write golden.npz.

    Its arrays are images, labels (-1: unknown) and probabilities; images_HxW and probabilities_HxW
    of other sizes. golden.features.npz has features instead of probabilities.
    """
    output = form.output_name
    arrays: dict[str, Any] = {
        "images": golden.images,
        "labels": _known_or_unknown(golden.labels, len(golden.images)),
        output: golden.answers,
    }
    for images, answers in golden.sizes:
        size = f"{images.shape[1]}x{images.shape[2]}"
        arrays |= {f"images_{size}": images, f"{output}_{size}": answers}
    with files.replacing(golden_path(folder, form)) as beside:
        np.savez_compressed(beside, **arrays)


def load_golden(folder: Path, form: Form = Form.CLASSIFIER) -> GoldenFile:
    """Return the golden images and answers that lie beside a folder's files.

    Raises:
        InputError (a ValueError): the file is missing or damaged.
    """
    path, output = golden_path(folder, form), form.output_name
    if not path.is_file():
        raise InputError(
            f"There is no {path} to verify against: export with `python -m export`, which writes "
            "it."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, answers = arrays["images"], arrays[output]
            labels = _none_if_unknown(arrays["labels"])
            others = [name for name in arrays.files if name.startswith("images_")]
            sizes = [(arrays[name], arrays[name.replace("images", output)]) for name in others]
    except Exception as error:  # a damaged zip raises what its layer raises
        raise InputError(f"{path} cannot be read ({error}): export again.") from error
    if not len(images) or len(images) != len(answers):
        raise InputError(
            f"{path} has {len(images)} images and {len(answers)} answers: export again."
        )
    return GoldenFile(images, labels, answers, tuple(sizes))


def golden_sizes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (images, probabilities) of other sizes in golden.npz; [] where there is none."""
    return list(load_golden(folder).sizes) if (folder / GOLDEN).is_file() else []


def _known_or_unknown(labels: np.ndarray | None, count: int) -> np.ndarray:
    return np.full(count, UNKNOWN, np.int64) if labels is None else labels


def _none_if_unknown(labels: np.ndarray) -> np.ndarray | None:
    return None if (labels < 0).any() else labels
