"""What travels with an exported file: labels, preprocessing, provenance, golden answers, and the certificate.

Inside the file, in three pieces: a description as JSON (vggkeras), a few golden images with the answers to them (golden),
and the seal: the sha256 of every part, so that what was changed can be told, and of all bytes before it. In ONNX they are
metadata_props, with the labels as a JSON list under "labels"; in a .tflite file members of the zip archive at its end
(TFLite's associated files), with labels.txt, and the seal is that archive's comment; in a SavedModel files of assets.extra.
Beside the file: golden.npz and certificate.json.

Reading takes NumPy, Pillow and, for .tflite, LiteRT's own package: no onnx, no Keras.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vggkeras
from export.containers import (
    PARTS,
    SEAL,
    UNREADABLE,
    DamagedError,
    append,
    as_bytes,
    mapped_file,
    part_digests,
    parts_of,
)
from export.golden import GOLDEN, INSIDE, SHARE, Golden
from vggkeras import files
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.processor import this_processor
from vggkeras.runtimes.predictor import Predictor


def describe(
    card: ModelCard,
    reference: Predictor,
    model_sha256: str,
    form: Form = Form.CLASSIFIER,
    precision: str = "float32",
) -> ModelCard:
    """Return the card that travels in a file which gives what the reference does.

    Args:
        card: of the model.
        reference: the Predictor whose images and answers the file's are.
        model_sha256: of the .keras file.
        form: of the file.
        precision: of the file.
    """
    return replace(
        card,
        class_names=tuple(reference.class_names),
        scale=reference.scale,
        form=form,
        precision=precision,
        input_shape=reference.input_shape,
        outputs=reference.outputs,
        model_sha256=model_sha256,
        written_with=vggkeras.__version__,
        processor=this_processor(),
    )


@dataclass(frozen=True)
class Contents:
    """What an exported file says of itself."""

    card: ModelCard
    golden: Golden | None
    changed: list[str]  # the parts that are not what they were when the file was sealed


def seal(path: Path, golden: Golden) -> None:
    """Put golden images and answers into a written file, and the seal behind them. Nothing before them is rewritten."""
    arrays: dict[str, Any] = {
        "probabilities": golden.probabilities,
        "answers": golden.answers,
        "labels": np.full(len(golden.images), -1, np.int64)
        if golden.labels is None
        else golden.labels,
        "shape": np.array(golden.images.shape),
        "layers": np.array(list(golden.layers)),
        "means": np.concatenate([*golden.layers.values(), np.empty(0, np.float32)]),
        "sizes": np.array([len(values) for values in golden.layers.values()], np.int64),
    }
    n, h, w, c = golden.images.shape
    if c in (1, 3):  # losslessly, one below the other
        buffer = io.BytesIO()
        Image.fromarray(golden.images.reshape(n * h, w, c).squeeze()).save(
            buffer, "PNG", optimize=True
        )
        arrays["png"] = np.frombuffer(buffer.getvalue(), np.uint8)
    else:
        arrays["images"] = golden.images
    if golden.original is not None:
        arrays["original"] = np.frombuffer(golden.original, np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    append(path, GOLDEN, buffer.getvalue())
    # First a blank one: it is as long as the seal, and so all bytes before it are what they will be.
    append(path, SEAL, as_bytes(dict.fromkeys(PARTS, "0" * 64)))
    content = as_bytes(part_digests(*parts_of(path)))
    with open(path / "assets.extra" / SEAL if path.is_dir() else path, "r+b") as file:
        file.seek(-len(content), io.SEEK_END)
        file.write(content)


def golden_count(path: Path, golden: np.ndarray) -> int:
    """How many of the golden images travel inside a file."""
    least, most = INSIDE
    return min(len(golden), max(least, min(most, int(files.size(path) * SHARE / golden[0].nbytes))))


def read(path: Path) -> Contents:
    """What a file says of itself, and which of its parts are not what they were.

    Raises:
        InputError (a ValueError): the file is of another make.
        DamagedError (a ValueError): it is ours, and cut short or past reading.
    """
    try:
        members, hashes = parts_of(path)
    except UNREADABLE as error:
        if not _is_ours(path):
            raise _of_another_make(path) from error
        raise DamagedError(f"it is cut short or damaged ({error})") from error
    if "vggkeras.json" not in members and not _is_ours(path):
        raise _of_another_make(path)
    for name, what in (
        ("vggkeras.json", "description"),
        (GOLDEN, "golden answers"),
        (SEAL, "checksums"),
    ):
        if not members.get(name):
            raise DamagedError(
                f"its {what} are missing: it is cut short or damaged, or was exported by an older version"
                if what.endswith("s")
                else f"its {what} is missing: it is cut short or damaged"
            )
    try:
        card = ModelCard.from_json(json.loads(members["vggkeras.json"]), path)
        if card.input_shape is None or card.scale is None:
            raise ValueError("it does not say what images it takes")
        found = part_digests(members, hashes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its description cannot be read ({error}): it is damaged") from error
    try:
        sealed = dict(json.loads(members[SEAL]))
        if missing := [part for part in PARTS if part not in sealed]:
            raise ValueError(f"none of {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"its checksums cannot be read ({error}): it is cut short or damaged"
        ) from error
    changed = [part for part in PARTS if found[part] != sealed.get(part)]
    if len(changed) > 1:  # the others say it better
        changed = [part for part in changed if part != "other bytes"]
    if not changed and members[SEAL] != as_bytes(found):
        changed = ["checksums"]
    if "golden answers" in changed:
        return Contents(card, None, changed)
    try:
        return Contents(card, _golden(members[GOLDEN], path.suffix), changed)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DamagedError(f"its golden answers cannot be read ({error}): it is damaged") from error


def _of_another_make(path: Path) -> InputError:
    return InputError(
        f"{path} is not of vggkeras: there is nothing inside to verify it against; export with `python -m export`, which "
        "puts golden answers into every file."
    )


def _is_ours(path: Path) -> bool:
    """Whether a file that may be cut short names us as the one who wrote it, or ends before it would name anyone."""
    if path.is_dir():
        return any(
            (path / "assets.extra" / name).exists() for name in ("vggkeras.json", GOLDEN, SEAL)
        )
    if not path.stat().st_size:
        return False
    mapped = mapped_file(path)
    if path.suffix == ".onnx":
        return mapped[:200].find(b"vggkeras") >= 0
    return mapped.find(b"vggkeras ") >= 0 or _ends_too_early(memoryview(mapped))


def _ends_too_early(data: memoryview) -> bool:
    """Whether a .tflite file, whoever made it, ends before the description that its head points to."""
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != b"TFL3":
        return False
    try:
        text = schema.Model.GetRootAs(data, 0).Description()
    except (struct.error, IndexError, ValueError, TypeError):
        return True
    return bool(text) and b"vggkeras ".startswith(text)


def _golden(packed: bytes, suffix: str) -> Golden:
    packed = base64.b85decode(packed) if suffix == ".onnx" else packed
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        if "png" in arrays:
            images = np.asarray(Image.open(io.BytesIO(arrays["png"].tobytes()))).reshape(
                arrays["shape"]
            )
        else:
            images = arrays["images"]
        means = np.split(arrays["means"], np.cumsum(arrays["sizes"])[:-1])
        labels = arrays["labels"]
        return Golden(
            images,
            None if (labels < 0).any() else labels,
            arrays["probabilities"],
            arrays["answers"],
            dict(zip(arrays["layers"].tolist(), means, strict=True)),
            arrays["original"].tobytes() if "original" in arrays else None,
        )
