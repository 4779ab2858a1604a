"""ImageNet's 1000 classes in the order of ILSVRC-2012, that of every published VGG network.

imagenet.csv has a line a class: its WordNet id and its name. The ids are the challenge's synsets;
the names are their first lemmas in WordNet 3.0. Two cranes and two maillots share a lemma and are
told apart in brackets.
"""

from __future__ import annotations

import functools
from importlib import resources

CLASSES = 1000


def wnids() -> list[str]:
    """Return the WordNet ids (n01440764 …), which name ImageNet's folders; class i is the i-th."""
    return [wnid for wnid, _ in _lines()]


def class_names() -> list[str]:
    """Return the names of the classes (tench …), all different, in the same order."""
    return [name for _, name in _lines()]


def readable(names: list[str]) -> list[str]:
    """Return names of classes, or ImageNet's class names where these are its 1000 WordNet ids."""
    return class_names() if names == wnids() else names


@functools.cache
def _lines() -> tuple[tuple[str, str], ...]:
    text = (resources.files("vggkeras.data") / "imagenet.csv").read_text(encoding="utf-8")
    return tuple(
        (wnid, name) for wnid, _, name in (line.partition(",") for line in text.splitlines())
    )
