"""ImageNet's 1000 classes in ILSVRC-2012's order, the order of every published VGG network's answers.

From the challenge's synsets (ILSVRC-2012) and their first lemmas in WordNet 3.0; the two cranes and the two maillots, which
share a lemma, are told apart in brackets. imagenet.csv has a line a class: its WordNet id and its name.
"""

from __future__ import annotations

import functools
from importlib import resources

CLASSES = 1000


def wnids() -> list[str]:
    """The WordNet ids (n01440764 …), sorted: class i is the i-th. ImageNet's folders are called by them."""
    return [wnid for wnid, _ in _lines()]


def class_names() -> list[str]:
    """The classes' names (tench …), all different, in the same order."""
    return [name for _, name in _lines()]


@functools.cache
def _lines() -> tuple[tuple[str, str], ...]:
    text = (resources.files("vggkeras.data") / "imagenet.csv").read_text(encoding="utf-8")
    return tuple(
        (wnid, name) for wnid, _, name in (line.partition(",") for line in text.splitlines())
    )
