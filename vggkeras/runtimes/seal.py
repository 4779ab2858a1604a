"""Read the card of an exported file, and check the file's seal before a runtime sees it.

A checksum finds damage. It does not say who wrote a file: whoever changes one can seal it again.
"""

from __future__ import annotations

from pathlib import Path

from vggkeras import containers, typed
from vggkeras.card import ModelCard
from vggkeras.containers import DESCRIPTION, GOLDEN, PARTS, SEAL, UNREADABLE, DamagedError
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Sealed


def card_of(path: Path, verify: bool = True) -> tuple[ModelCard, Sealed]:
    """Return a file's card, empty of a file that vggkeras did not write, and its seal's state.

    Args:
        path: a .onnx or .tflite file, or a SavedModel folder.
        verify: read all of a sealed file, and compare it with its seal.

    Raises:
        InputError (a ValueError): vggkeras wrote the file, and it was changed or cut short since.
    """
    try:
        members = _members(path)
        if DESCRIPTION not in members:
            if verify and containers.names_vggkeras(path):
                raise DamagedError("its description is missing")
            return ModelCard(), "foreign"
        sealed = _checked(path, members) if verify else "no"
    except UNREADABLE as error:
        raise InputError(
            f"{path} was changed or cut short since vggkeras wrote it ({error}): expected the file "
            "as it was exported; copy it again, export it again, or load it with verify=False "
            "if it was changed on purpose."
        ) from error
    return ModelCard.from_text(members[DESCRIPTION], path), sealed


def _members(path: Path) -> dict[str, bytes]:
    """Return what travels in a file; {} of one that vggkeras did not write and that is damaged."""
    try:
        return containers.members_of(path)
    except UNREADABLE:
        if containers.names_vggkeras(path):
            raise
        return {}


def _checked(path: Path, members: dict[str, bytes]) -> Sealed:
    """Return whether a file has a seal, which is that of its content. Raise ValueError if not."""
    content = members.get(SEAL)
    if not content:
        # The golden answers are written with the seal, which follows them.
        if GOLDEN in members:
            raise DamagedError("its checksums are missing")
        return "no"
    seal = typed.parse(content)
    if content != containers.seal_text({part: seal[part] for part in PARTS}):
        raise DamagedError("its checksums cannot be read")
    if containers.other_bytes(path, len(content)) != seal["other bytes"]:
        raise DamagedError("its sha256 is not that of its seal")
    return "yes"
