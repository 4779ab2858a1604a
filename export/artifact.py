"""Write and read what travels inside an exported file: description, golden answers, seal.

The description is a `ModelCard` as JSON. The golden answers are a few images with the answers to
them. The seal is the sha256 of every part of the file, so that a message can name the part that was
changed, and of all bytes before it. `vggkeras.containers` knows where they lie in each format.

Reading takes NumPy, Pillow and, for .tflite, LiteRT's own package.
"""

from __future__ import annotations

import shutil
from base64 import b85decode
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import vggkeras
from export.golden import Golden
from vggkeras import containers, files, typed
from vggkeras.card import Form, ModelCard
from vggkeras.containers import (
    DESCRIPTION,
    GOLDEN,
    PARTS,
    SEAL,
    UNREADABLE,
    DamagedError,
    Parts,
    names_vggkeras,
)
from vggkeras.errors import InputError
from vggkeras.processor import this_processor
from vggkeras.runtimes.predictor import Predictor

INSIDE = (2, 16)  # golden images inside a file, at least and at most,
INSIDE_FRACTION = 0.01  # of its bytes


def describe(
    card: ModelCard,
    reference: Predictor,
    model_sha256: str,
    form: Form = Form.CLASSIFIER,
    precision: str = "float32",
) -> ModelCard:
    """Return the card that travels in a file which gives what the reference gives.

    Args:
        card: that of the model.
        reference: the Predictor whose input and output the file has.
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


def golden_count(path: Path, golden: np.ndarray) -> int:
    """Return how many of the golden images travel inside a file."""
    least, most = INSIDE
    affordable = int(files.size(path) * INSIDE_FRACTION / golden[0].nbytes)
    return min(len(golden), max(least, min(most, affordable)))


def seal(path: Path, golden: Golden) -> None:
    """Append golden images and answers to a written file, and then the seal."""
    containers.append(path, GOLDEN, golden.pack())
    # A blank seal first: it is as long as the real one, so the bytes before it are final.
    containers.append(path, SEAL, containers.seal_text(dict.fromkeys(PARTS, "0" * 64)))
    digests = containers.parts_of(path).digests()
    containers.overwrite_seal(path, containers.seal_text(digests))


def copy(path: Path, copied: Path, sha256: str) -> None:
    """Copy a proven file, or a SavedModel folder, into a folder that is made if it is not there.

    Raises:
        InputError (a ValueError): the copy has another sha256.
    """
    copied.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copied)
    else:
        shutil.copyfile(path, copied)
    if files.sha256(copied) != sha256:
        raise InputError(f"{path} changed while it was copied: export it again.")


@dataclass(frozen=True)
class Contents:
    """What an exported file says about itself."""

    card: ModelCard
    golden: Golden | None  # None where they were changed
    changed: list[str]  # the parts that were changed since the file was sealed


def read(path: Path) -> Contents:
    """Return what a file says about itself, and which of its parts were changed since.

    Raises:
        InputError (a ValueError): vggkeras did not write the file.
        DamagedError (a ValueError): vggkeras wrote it, and it was cut short or cannot be read.
    """
    parts = _parts(path)
    try:
        card = ModelCard.from_text(parts.members[DESCRIPTION], path)
        if card.input_shape is None or card.scale is None:
            raise ValueError("it does not say what images it takes")
        digests = parts.digests()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its description cannot be read ({error}): it is damaged") from error
    changed = _changed(parts.members[SEAL], digests)
    if "golden answers" in changed:
        return Contents(card, None, changed)
    packed = parts.members[GOLDEN]
    try:
        golden = Golden.unpack(b85decode(packed) if path.suffix == ".onnx" else packed)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DamagedError(f"its golden answers cannot be read ({error}): it is damaged") from error
    if golden.images.shape[3] != card.input_shape[2] or golden.answers.shape[-1] != card.outputs:
        raise DamagedError("its golden answers are not of what its description says: it is damaged")
    return Contents(card, golden, changed)


def _parts(path: Path) -> Parts:
    """Return a file's parts, with all of its members there."""
    try:
        parts = containers.parts_of(path)
    except UNREADABLE as error:
        if not names_vggkeras(path):
            raise _not_by_vggkeras(path) from error
        raise DamagedError(f"it is cut short or damaged ({error})") from error
    members = parts.members
    if DESCRIPTION not in members and not names_vggkeras(path):
        raise _not_by_vggkeras(path)
    if not members.get(DESCRIPTION):
        raise DamagedError("its description is missing: it is cut short or damaged")
    for member, name in ((GOLDEN, "golden answers"), (SEAL, "checksums")):
        if not members.get(member):
            raise DamagedError(
                f"its {name} are missing: it is cut short or damaged, or was exported by an older "
                "version"
            )
    return parts


def _changed(sealed: bytes, digests: dict[str, str]) -> list[str]:
    """Return the parts whose digests differ from those in the seal."""
    try:
        expected = dict(typed.parse(sealed))
        if missing := [part for part in PARTS if part not in expected]:
            raise ValueError(f"none of {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"its checksums cannot be read ({error}): it is cut short or damaged"
        ) from error
    changed = [part for part in PARTS if digests[part] != expected[part]]
    if len(changed) > 1:  # "other bytes" is everything: the other parts say more
        changed = [part for part in changed if part != "other bytes"]
    if not changed and sealed != containers.seal_text(digests):
        return ["checksums"]
    return changed


def _not_by_vggkeras(path: Path) -> InputError:
    return InputError(
        f"{path} was not written by vggkeras: there is nothing inside to verify it against; export "
        "with `python -m export`, which puts golden answers into every file."
    )
