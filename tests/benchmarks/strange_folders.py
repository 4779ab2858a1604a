"""Make folders as people have them, out of Imagenette: those of docs/results.md.

    TFDS_DATA_DIR=path/to/tfds python tests/benchmarks/strange_folders.py folders

test1000    1,000 validation photographs in class folders
onlytest    600 of them in test/, with neither train/ nor val/ beside it
oneeach     one of each class
broken      200 in a folder, one of which is cut short
gallery     two classes of 20 photographs and every format and mode that Pillow writes
eight       one photograph as PNG, stored in the eight orientations of EXIF
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import ExifTags, Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/export would hide export
from image_gallery import every_image

import vggkeras
from vggkeras.data import decoding

UNDO = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def main(root: Path) -> None:
    """Make the folders in `root`."""
    data = vggkeras.load_data("tfds:imagenette/160px-v2")
    split = data.split("validation")
    split = split.without(split.indices()[1000:])
    seen: set[int] = set()
    for number, (index, encoded, label) in enumerate(split.examples()):
        places = ["test1000"]
        places += ["onlytest/test"] * (number < 600) + ["oneeach"] * (label not in seen)
        for place in places:
            path = root / place / data.class_names[label] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
        seen.add(label)
    photographs = [path.read_bytes() for path in sorted((root / "test1000").rglob("*.jpg"))[:200]]
    for name in ("broken", "eight"):
        (root / name).mkdir()
    for number, content in enumerate(photographs):
        part = content[:300] if number == 100 else content
        (root / "broken" / f"{number:03d}.jpg").write_bytes(part)
    for name in ("a", "b"):
        every_image(root / "gallery" / name)
        for number, content in enumerate(photographs[:20]):
            (root / "gallery" / name / f"photograph {number}.jpg").write_bytes(content)
    upright = Image.fromarray(decoding.decode(photographs[0]))
    for orientation in range(1, 9):
        exif, picture = Image.Exif(), upright
        exif[ExifTags.Base.Orientation] = orientation
        if orientation in decoding.TURNS:
            picture = upright.transpose(UNDO.get(orientation, decoding.TURNS[orientation]))
        picture.save(root / "eight" / f"{orientation}.png", exif=exif)


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit(f"{__doc__}\nExpected the name of a folder that is not there yet.")
    main(Path(sys.argv[1]))
