"""TODO"""

from __future__ import annotations

import io
from collections.abc import Sequence
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
INSIDE = (2, 16)  # golden images inside a file, at least and at most,
SHARE = 0.01  # of its bytes
ORIGINAL_BYTES = (
    1 << 18
)  # of the encoded photograph that the first one was cut from; a larger one is made smaller


@dataclass(frozen=True)
class Golden:
    """Images that travel inside a file, and what answers to expect; of a file of features, these are the probabilities."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int64 [N]
    probabilities: np.ndarray  # float32 [N, classes], of the Keras model
    answers: np.ndarray  # float32 [N, classes], of the file itself where it was made
    layers: dict[
        str, np.ndarray
    ]  # layer -> the mean of each channel of the Keras model's output of the first image;
    # "decode": some pixels of its photograph
    original: bytes | None  # the encoded photograph that the first image was cut from


def small_original(encoded: bytes, scale: int) -> bytes:
    """An encoded photograph; as a JPEG, of twice the side it is rescaled to at most, where it is too large to travel."""
    if len(encoded) <= ORIGINAL_BYTES:
        return encoded
    image = decoding.decode(encoded)
    smaller = augment.rescale(image, min(2 * scale, *image.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(smaller).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoded_samples(image: np.ndarray) -> np.ndarray:
    """Some pixels of a decoded photograph, by which another decoder's can be compared: float32 `[192]`."""
    rows, columns = (np.linspace(0, side - 1, 8).astype(int) for side in image.shape[:2])
    return image[rows[:, None], columns].astype(np.float32).ravel()


def save_golden(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    answers: np.ndarray,
    sizes: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    *,
    features: bool = False,
) -> None:
    """Write golden.npz: images uint8 `[N, H, W, C]`, labels int64 `[N]` (-1: unknown), probabilities float32.

    `sizes` are (images, probabilities) of other sizes, for dense files: images_HxW and probabilities_HxW. Features go to
    golden.features.npz, with features and features_HxW in the probabilities' place.
    """
    output = _answers_name(features)
    known = np.full(len(images), -1, np.int64) if labels is None else labels
    arrays: dict[str, Any] = {"images": images, "labels": known, output: answers}
    for shown, others in sizes:
        size = f"{shown.shape[1]}x{shown.shape[2]}"
        arrays |= {f"images_{size}": shown, f"{output}_{size}": others}
    with files.replacing(golden_path(folder, features=features)) as beside:
        np.savez_compressed(beside, **arrays)


def golden_path(folder: Path, *, features: bool = False) -> Path:
    """Where the golden answers of a folder's files lie: golden.npz; of those that give features, golden.features.npz."""
    return form_path(folder / GOLDEN, Form.FEATURES) if features else folder / GOLDEN


def _answers_name(features: bool) -> str:
    return "features" if features else "probabilities"


def golden_sizes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, probabilities) of other sizes in golden.npz; [] where there is none."""
    return load_golden(folder)[3] if (folder / GOLDEN).is_file() else []


def load_golden(
    folder: Path, *, features: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Images, labels (None where unknown), probabilities, and (images, probabilities) of other sizes; or features.

    Raises InputError when the file is missing or damaged.
    """
    path, output = golden_path(folder, features=features), _answers_name(features)
    if not path.is_file():
        raise InputError(
            f"There is no {path} to verify against: export with `python -m export`, which writes it."
        )
    try:
        with np.load(path, allow_pickle=False) as golden:
            images, labels, answers = golden["images"], golden["labels"], golden[output]
            others = [name for name in golden.files if name.startswith("images_")]
            sizes = [(golden[name], golden[name.replace("images", output)]) for name in others]
    except Exception as error:  # a damaged zip raises what its layer raises
        raise InputError(f"{path} cannot be read ({error}): export again.") from error
    if not len(images) or len(images) != len(answers):
        raise InputError(
            f"{path} has {len(images)} images and {len(answers)} answers: export again."
        )
    return images, None if (labels < 0).any() else labels, answers, sizes
