"""ImageNet's class names and WordNet identifiers."""

from __future__ import annotations

from pathlib import Path

from vggkeras.data import imagenet


def test_imagenets_names():
    names, wnids = imagenet.class_names(), imagenet.wnids()
    assert len(set(names)) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert (wnids[0], names[0]) == ("n01440764", "tench")
    assert (wnids[-1], names[-1]) == ("n15075141", "toilet tissue")
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    import tensorflow_datasets as tfds

    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert labels.read_text().split() == wnids
