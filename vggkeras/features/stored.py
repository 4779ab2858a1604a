"""Read a .npz file of features back, with the images that they are of."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from vggkeras import typed
from vggkeras.card import ModelCard
from vggkeras.data import sources
from vggkeras.errors import InputError
from vggkeras.features.extraction import Described, Provenance, image_name, load_images


def read(path: Path, card: ModelCard) -> Described:
    """Return what `extraction.write` wrote as .npz; the images must be where they were.

    Args:
        path: of the file.
        card: of the model that gave the features: says how images were split and turned.

    Raises:
        InputError (a ValueError): the file is damaged; its images are not there any more.
    """
    again = "write it again with `python -m vggkeras features`, or remove it"
    try:
        with np.load(path, allow_pickle=False) as kept:
            about = typed.instance(Provenance, json.loads(str(kept["about"])), "about")
            features, labels = kept["features"], kept["labels"]
            splits, names = kept["split"], kept["names"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no features ({error}): {again}.") from error
    # A name inside a file makes nothing ask for it elsewhere.
    data = load_images(about.data, about.splits, skip_unreadable=True, fetch=False)
    if data.held_out:
        data = sources.as_trained(data, about.splits, [card], skip_unreadable=True, fetch=False)
    known = {
        (name, image_name(data, name, i)): i
        for name, split in data.splits.items()
        for i in split.indices()
    }
    rows = list(zip(splits.tolist(), names.tolist(), strict=True))
    if gone := [row for row in rows if row not in known]:
        raise InputError(
            f"{path} has features of {len(gone):,} images that {about.data} has no more, such as "
            f"{gone[0][1]}: {again}."
        )
    indices = np.array([known[row] for row in rows], np.int64)
    data = data.upright(card.exif)
    return Described(data, features, labels, splits, indices, about, seconds=0.0, flatters=None)
