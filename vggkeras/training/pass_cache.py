"""Remember what the first pass over some files found, for as long as none of them changes.

An entry is a file in the user's cache folder, one for each data string. It holds a digest of every
file's path, size and times, and of what decodes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

import vggkeras
from vggkeras import caches, files, typed
from vggkeras.card import ModelCard
from vggkeras.data import formats
from vggkeras.data.splits import Data, Records, Split
from vggkeras.errors import InputError

STATISTICS = 1  # raised whenever the same files would give other numbers
SETTLED = 2.0  # seconds: a file changed since may change again within the same tick of its clock
LARGEST = 1 << 26  # bytes of an entry that is read


@dataclass(frozen=True)
class Entry:
    """Where a pass over some splits is remembered, and the state of their files."""

    path: Path
    digest: str
    newest: float  # when one of the files changed last, seconds since the epoch

    def read(self, splits: Mapping[str, Split]) -> ModelCard | None:
        """Return the card of an earlier pass over the same files.

        None where there is none. An entry that is damaged, that somebody else wrote, or that cannot
        be of these splits is none.
        """
        try:
            text = _own_text(self.path)
            value = typed.parse(text)
            content = json.dumps(value["card"])
            if (value["files"], value["sha256"]) != (self.digest, _sha256(content)):
                return None
            card = ModelCard.from_json(value["card"], self.path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # an InputError is a ValueError
        return card if _fits(card, splits) else None

    def write(self, card: ModelCard) -> None:
        """Remember a card, unless files were changed so recently that a change could be missed.

        Raises OSError or InputError where the cache folder cannot be written.
        """
        if time.time() - self.newest < SETTLED:
            return
        content = card.to_json()
        value = {"files": self.digest, "sha256": _sha256(json.dumps(content)), "card": content}
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        files.write_json(self.path, value)


def entry(data: Data, splits: Mapping[str, Split], channels: int, fast: bool) -> Entry | None:
    """Return the entry for a pass over some of the data's splits; None of images in memory.

    None too where there is no cache folder, or a file cannot be looked at: reading it will say why.
    """
    folder = caches.folder("first-pass")
    if folder is None:
        return None
    state, newest = hashlib.sha256(), 0.0
    library = [features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib")]
    about = [
        STATISTICS,
        vggkeras.__version__,
        Image.__version__,
        library,
        formats.PLUGINS,
        channels,
        fast,
    ]
    state.update(json.dumps(about).encode())
    for name, split in splits.items():
        paths = _paths(split)
        if paths is None:
            return None
        records = split.sources.split if isinstance(split.sources, Records) else ""
        state.update(
            json.dumps([name, split.count, records, split.exif, sorted(split.left_out)]).encode()
        )
        try:
            for path in paths:
                status = os.stat(path)
                # The time of the last change of the inode cannot be set back, as mtime can.
                times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                state.update(f"{path}\0{status.st_size} {times}\n".encode())
                newest = max(newest, status.st_mtime, status.st_ctime)
        except OSError:
            return None
    key = _sha256(json.dumps([data.spec, sorted(splits), channels]))
    return Entry(folder / f"{key[:32]}.json", state.hexdigest(), newest)


def _paths(split: Split) -> Iterator[str] | None:
    """Return the paths of a split's files, in order; None of images in memory."""
    if isinstance(split.sources, Records):
        records = split.sources
        parts = records.builder.info.splits[records.split].file_instructions
        return iter(sorted({str(part.filename) for part in parts}))
    if not isinstance(split.sources, list):  # a library's, whose files are not known
        return None
    paths = [source for source in split.sources if isinstance(source, str)]
    return iter(paths) if len(paths) == len(split.sources) else None


def _own_text(path: Path) -> str:
    """Return the text of a regular file that this user wrote and that is not too large."""
    with caches.open_own(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise InputError(f"{path} is no entry of this user's cache: remove it.")
        return file.read().decode()


def _fits(card: ModelCard, splits: Mapping[str, Split]) -> bool:
    """Return whether a card can be of these splits."""
    images = splits["train"].count - len(card.unreadable.get("train", ()))
    limits = {name: split.count + len(split.left_out) for name, split in splits.items()}
    return (
        card.unreadable.keys() == splits.keys()
        and all(max(indices, default=0) < limits[n] for n, indices in card.unreadable.items())
        and sum(card.smallest_sides.values()) == images
        and len(card.rgb_covariance) == len(card.mean_rgb) > 0
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
