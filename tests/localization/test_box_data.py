"""Where boxes come from: boxes.csv, lists, Pascal VOC and TFDS; what is wrong is named."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import photo, stored, write_photos
from PIL import Image
from rich.console import Console

import vggkeras
from vggkeras.data import decoding, records
from vggkeras.data.sources import load_data_of
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.pipeline import Crops, rescaled_images, training_batches

HEADER = ["file", "label", "xmin", "ymin", "xmax", "ymax"]


def write_rows(path: Path, rows, header=HEADER) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def folder(tmp_path):
    """Two class folders of 12 images of 40 x 48 px; boxes.csv gives 000.jpg of cat two boxes."""
    root = tmp_path / "pets"
    rows = [["cat/000.jpg", "cat", 1, 1, 5, 5]]
    for seed, name in enumerate(("cat", "dog")):
        write_photos(root / name, 12, 100 * seed)
        rows += [[f"{name}/{i:03d}.jpg", name, i, 2, i + 20, 48] for i in range(12)]
    write_rows(root / "boxes.csv", rows)
    return root


def load(path: Path, boxes: bool = True):
    """Load data; where they have no validation split, enough is held out of few images."""
    whole = vggkeras.load_data(str(path), boxes=boxes, whole=True)
    if set(whole.splits) - {"all", "train", "test"}:
        return vggkeras.load_data(str(path), boxes=boxes)
    return vggkeras.load_data(str(path), boxes=boxes, validation=0.4)


def boxes_by_name(split) -> dict[str, list]:
    found = zip(split.sources, split.boxes.corners, strict=True)
    return {"/".join(Path(name).parts[-2:]): boxes.tolist() for name, boxes in found}


def test_a_folder_gives_its_boxes_the_largest_first(folder):
    data = load(folder)
    assert data.class_names == ["cat", "dog"]
    found = boxes_by_name(data.split("all"))
    assert len(found) == 24
    assert found["cat/000.jpg"] == [[0, 2, 20, 48], [1, 1, 5, 5]]
    assert found["dog/011.jpg"] == [[11, 2, 31, 48]]
    split = data.split("train")
    assert split.boxes.sizes.tolist() == [[48, 40]] * split.count
    assert split.boxes.largest.shape == (split.count, 4)
    fewer = split.without([0, 2])
    assert boxes_by_name(fewer) == {
        name: boxes for name, boxes in boxes_by_name(split).items()
        if name not in ("/".join(Path(split.sources[i]).parts[-2:]) for i in (0, 2))
    }  # fmt: skip
    # Whoever does not ask for boxes gets none, and the same images.
    plain = load(folder, boxes=False)
    assert plain.split("all").boxes is None
    assert plain.split("train").sources == split.sources


def test_train_and_val_folders_share_a_file(folder):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
    rows = []
    for i, name in enumerate(("cat", "dog") * 12):
        file = f"{['train', 'val'][i % 3 == 0]}/{name}/{i // 2:03d}.jpg"
        (folder / name / f"{i // 2:03d}.jpg").rename(folder / file)
        rows.append([file, name, i, 0, i + 4, 9])
    write_rows(folder / "boxes.csv", rows)
    data = load(folder)
    assert {name: split.count for name, split in data.splits.items()} == {
        "train": 16,
        "validation": 8,
    }
    assert boxes_by_name(data.split("validation"))["cat/000.jpg"] == [[0, 0, 4, 9]]


def test_the_same_file_is_a_list(folder):
    """And a column of splits divides it, as in any list."""
    of_folder = boxes_by_name(load(folder).split("train"))
    of_list = load(folder / "boxes.csv")
    assert boxes_by_name(of_list.split("train")) == of_folder
    assert load(folder / "boxes.csv", boxes=False).split("all").count == 24
    rows = [
        [f"{name}/{i:03d}.jpg", name, 0, 0, 9, 9, "train" if i < 10 else "test"]
        for name in ("cat", "dog")
        for i in range(12)
    ]
    write_rows(folder / "list.csv", rows, [*HEADER, "split"])
    data = load(folder / "list.csv")
    assert data.split("test").count == 4
    assert {n: s.count == len(s.boxes.corners) for n, s in data.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), True
    )


BAD = {  # a row instead of the last one -> what is said
    (
        "dog/011.jpg",
        "dog",
        30,
        2,
        10,
        48,
    ): "row 25.*minimum above its maximum, xmin 30",
    ("dog/011.jpg", "dog", 3, 48, 10, 2): "row 25.*minimum above its maximum, ymin 48 and ymax 2",
    ("dog/011.jpg", "dog", 3, 2, 3, 48): "row 25.*no area, xmin 3 and xmax 3",
    ("dog/011.jpg", "dog", 3, 2, 41, 48): "row 25.*outside its image, .*dog/011.jpg of 40 x 48 px",
    ("dog/011.jpg", "dog", -1, 2, 4, 48): "row 25.*outside its image, .*dog/011.jpg of 40 x 48 px",
    ("dog/011.jpg", "dog", "a", 2, 4, 48): "row 25: expected four numbers.*received a, 2, 4, 48",
    ("dog/011.jpg", "dog", "nan", 2, 4, 48): "row 25: expected four numbers",
    ("dog/011.jpg", "cat", 3, 2, 4, 48): "row 25: the class 'cat', and .*011.jpg is in the folder",
    ("dog/011.jpg", "cow", 3, 2, 4, 48): "row 25: the class 'cow', which no folder has",
    ("dog/012.jpg", "dog", 3, 2, 4, 48): "row 25: a box without an image: .*012.jpg is no image of",
    ("dog/010.jpg", "dog", 3, 2, 4, 48): "011.jpg: 1 of the .* images of pets/.* have no box",
}


@pytest.mark.parametrize("row", BAD)
def test_bad_rows_are_named(folder, row):
    with open(folder / "boxes.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    write_rows(folder / "boxes.csv", [*rows[:-1], row])
    with pytest.raises(InputError, match=BAD[row]):
        load(folder)
    assert load(folder, boxes=False).split("all").count == 24  # which reads no boxes


def test_a_list_whose_rows_contradict_each_other_is_refused(folder):
    write_rows(
        folder / "a.csv", [["cat/000.jpg", "cat", 0, 0, 9, 9], ["cat/000.jpg", "dog", 0, 0, 9, 9]]
    )
    with pytest.raises(InputError, match="row 2 has another class, 'dog', for the image of row 1"):
        load(folder / "a.csv", boxes=False)
    rows = [["cat/000.jpg", "cat", 0, 0, 9, 9, "train"], ["cat/000.jpg", "cat", 0, 0, 9, 9, "val"]]
    write_rows(folder / "b.csv", rows, [*HEADER, "split"])
    with pytest.raises(InputError, match="row 2 has another split, 'validation'"):
        load(folder / "b.csv", boxes=False)


def test_data_without_boxes_say_what_is_missing(folder, tmp_path):
    (folder / "boxes.csv").unlink()
    with pytest.raises(InputError, match=r"has no boxes: expected boxes.csv in it .*or Pascal VOC"):
        load(folder)
    write_rows(folder / "list.csv", [["cat/000.jpg", "cat"], ["dog/000.jpg", "dog"]], HEADER[:2])
    with pytest.raises(InputError, match=r"list.csv has no boxes: expected the columns xmin, ymin"):
        vggkeras.load_data(str(folder / "list.csv"), boxes=True, whole=True)
    write_rows(folder / "boxes.csv", [["cat/000.jpg", "cat"]], HEADER[:2])
    with pytest.raises(InputError, match=r"boxes.csv has no boxes: expected the columns"):
        load(folder)
    arrays = vggkeras.Data.from_arrays(np.zeros((10, 32, 32, 3), np.uint8), [0, 1] * 5)
    for data in ("digits", arrays):
        with pytest.raises(InputError, match=r"has no boxes: expected a folder with boxes.csv"):
            vggkeras.load_data(data, boxes=True)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_of_the_upright_image(folder, orientation):
    """With --no-exif they are turned back, to the image as it is stored."""
    image = Image.fromarray(photo(5, 48, 40))
    (folder / "cat" / "001.jpg").write_bytes(stored(image, orientation, "JPEG"))
    data = load(folder)
    upright = boxes_by_name(data.upright(True).split("all"))
    assert upright["cat/001.jpg"] == [[1, 2, 21, 48]]
    as_stored = {1: [1, 2, 21, 48], 3: [19, 0, 39, 46], 6: [2, 19, 48, 39], 8: [0, 1, 46, 21]}
    assert boxes_by_name(data.upright(False).split("all"))["cat/001.jpg"] == [
        as_stored[orientation]
    ]


# ---- Pascal VOC ---------------------------------------------------------------------------------


def annotation(*objects) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    return f"<annotation><size><width>40</width></size>{boxes}</annotation>"


def test_voc_files_beside_the_images(folder):
    """Pixels count from 1, and the last is included; other classes' objects are no boxes of it."""
    (folder / "boxes.csv").unlink()
    for path in folder.glob("*/*.jpg"):
        name = path.parent.name
        objects = [(name, 1, 1, 10, 20), ("person", 1, 1, 40, 48), (name, 0, 5, 40, 48)]
        path.with_suffix(".xml").write_text(annotation(*objects))
    data = load(folder)
    assert boxes_by_name(data.split("all"))["dog/003.jpg"] == [[0, 4, 40, 48], [0, 0, 10, 20]]
    assert data.unread == {}
    first = folder / "cat" / "000.xml"
    for text, expected in {
        annotation(("dog", 1, 1, 10, 20)): "000.jpg: 1 of the .* have no box of their class",
        annotation(("cat", 1, 1, 41, 20)): r"000.xml, object 1: the box 0, 0, 41, 20 is outside",
        annotation(("cat", 1, 30, 4, 20)): "000.xml, object 1: .*minimum above its maximum",
        annotation(("", 1, 3, 4, 20)): "000.xml, object 1: expected a <name>",
        "<annotation><object><name>cat</name></object></annotation>": "object 1: expected four",
        "<html></html>": "000.xml is no annotation of Pascal VOC",
        "cat": "000.xml is no annotation of Pascal VOC",
    }.items():
        first.write_text(text)
        with pytest.raises(InputError, match=expected):
            load(folder)
    first.write_text(annotation(("cat", 1, 1, 10, 20)))
    (folder / "cat" / "999.xml").write_text(annotation(("cat", 1, 1, 10, 20)))
    with pytest.raises(InputError, match=r"999.xml: boxes without an image"):
        load(folder)


def test_vocs_own_folders(tmp_path):
    """An image's class is that of its largest object; the lists divide them."""
    root = tmp_path / "VOC2012"
    (root / "Annotations").mkdir(parents=True)
    write_photos(root / "JPEGImages", 12)
    for i in range(12):
        own, other = ("cat", "dog") if i % 2 else ("dog", "cat")
        text = annotation((other, 1, 1, 10, 10), (own, 3, 3, 40, 48), (own, 1, 1, 5, 5))
        (root / "Annotations" / f"{i:03d}.xml").write_text(text)
    for boxes in (True, False):
        data = vggkeras.load_data(str(root), boxes=boxes, validation=0.4)
        assert data.class_names == ["cat", "dog"]
        assert data.split("all").count == 12
        assert (data.split("train").boxes is not None) == boxes
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{i:03d}\n" for i in range(8)))
    (root / "ImageSets" / "Main" / "val.txt").write_text(
        "".join(f"{i:03d}\n" for i in range(8, 12))
    )
    data = vggkeras.load_data(str(root), boxes=True)
    assert [split.count for split in data.splits.values()] == [8, 4]
    assert data.validation == "the ImageSets/Main/val.txt"
    found = boxes_by_name(data.split("validation"))
    assert found["JPEGImages/009.jpg"] == [[2, 2, 40, 48], [0, 0, 5, 5]]
    assert data.split("validation").labels.tolist() == [1, 0, 1, 0]
    (root / "JPEGImages" / "003.jpg").unlink()
    with pytest.raises(InputError, match=r"003.xml: boxes without an image"):
        vggkeras.load_data(str(root), boxes=True)
    (root / "Annotations" / "003.xml").unlink()
    (root / "Annotations" / "004.xml").unlink()
    with pytest.raises(InputError, match=r"004.jpg has no box"):
        vggkeras.load_data(str(root), boxes=True)


# ---- TensorFlow Datasets ------------------------------------------------------------------------


def features_of(name: str) -> dict:
    """The features that this data set has in TensorFlow Datasets, with fewer classes."""
    import tensorflow_datasets as tfds

    f = tfds.features
    mask = {"segmentation_mask": f.Image(shape=(None, None, 1), use_colormap=True)}
    return {
        "image": f.Image(),
        "label": f.ClassLabel(num_classes=2),
        **{
            "stanford_dogs": {
                "image/filename": f.Text(),
                "objects": f.Sequence({"bbox": f.BBoxFeature()}),
            },
            "oxford_iiit_pet": {
                "species": f.ClassLabel(num_classes=2),
                "file_name": f.Text(),
                **mask,
                "head_bbox": f.BBoxFeature(),
            },
            "caltech_birds2011": {
                "image/filename": f.Text(),
                "label_name": f.Text(),
                "bbox": f.BBoxFeature(),
                **mask,
            },
        }[name],
    }


COUNT = 40  # training images, more than TFDS takes from one split before it turns to the next


def write_records(name: str, root: Path):
    """Write a small data set in TFDS' format, with boxes as the real one has them.

    Image number i has the color 5 i, and its box ends at 20 + 0.4 i px.
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(features_of(name))
    mask = np.zeros((50, 40, 1), np.uint8)

    class Boxed(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(COUNT), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            small = tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=0.1, xmax=0.1)
            none = tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=0.0, xmax=0.0)
            for i in range(count):
                box = tfds.features.BBox(ymin=0.2, xmin=0.25, ymax=1.0, xmax=0.5 + i / 100)
                # Pets' test images have no box, nor have some others.
                head = none if count == 4 or i == 3 else box
                values = {
                    "image": np.full((50, 40, 3), 5 * i, np.uint8),
                    "label": i % 2,
                    "image/filename": f"{i}.jpg",
                    "file_name": f"{i}.jpg",
                    "species": 0,
                    "label_name": "x",
                    "segmentation_mask": mask,
                    "bbox": box,
                    "head_bbox": head,
                    "objects": [{"bbox": small}, {"bbox": box}],
                }
                yield i, {key: values[key] for key in features}

    builder = Boxed(data_dir=root)
    builder.download_and_prepare()
    return builder


def assert_crops_have_their_own_boxes(split) -> None:
    """Hold the widths of training's targets against the colors, read in turn and from memory."""
    recipe, crops = Recipe(boxes="scr", batch_size=split.count, color=False), Crops(32, (40, 40))
    for rescaled in (None, rescaled_images(split, crops.scale, Console(quiet=True))):
        batches = training_batches(split, recipe, crops, 0, rescaled, 2)
        images, targets = (np.asarray(part) for part in next(iter(batches)))
        assert len(np.unique(images[:, 0, 0, 0])) == split.count
        widths = (10 + 0.08 * images[:, 0, 0, 0].astype(float)) / 32
        np.testing.assert_allclose(targets[:, 3], widths, atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    ["stanford_dogs", "oxford_iiit_pet", pytest.param("caltech_birds2011", marks=pytest.mark.full)],
)
def test_records_of_tfds_with_boxes(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    builder = write_records(name, tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda _: builder)
    data = vggkeras.load_data(f"tfds:{name}", boxes=True)
    pets = name == "oxford_iiit_pet"
    assert data.no_box == ({"train": 1, "test": 4} if pets else {})
    assert ("test" in data.splits) == (not pets)
    assert data.split("train").count + data.split("validation").count == COUNT - pets
    for split in data.splits.values():
        for index, encoded, _ in split.examples():
            assert encoded[:8].startswith(b"\x89PNG")
            assert split.boxes.sizes[index].tolist() == [50, 40]
            boxes = split.boxes.corners[index]
            end = 20 + 0.08 * int(decoding.decode(encoded)[0, 0, 0])
            assert boxes[0] == pytest.approx([10, 10, end, 50], abs=1e-5)  # px, the largest first
            assert len(boxes) == (2 if name == "stanford_dogs" else 1)
    part = data.split("train[:50%]")
    assert part.boxes.corners[0][0] == pytest.approx(data.splits["train"].boxes.corners[0][0])
    both = data.split("train+validation")
    assert both.count == COUNT - pets
    found = {i: int(decoding.decode(encoded)[0, 0, 0]) for i, encoded, _ in both.examples()}
    assert sorted(found) == both.indices()
    for index, color in found.items():
        assert both.boxes.corners[index][0][2] == pytest.approx(20 + 0.08 * color, abs=1e-5)
    assert_crops_have_their_own_boxes(data.split("train"))
    assert load_data_of([], f"tfds:{name}").split("train").boxes is None


def test_records_without_boxes_say_so():
    with pytest.raises(InputError, match="tfds:x has no boxes: expected a feature of boxes"):
        records._box_feature("tfds:x", {"image": None, "label": None})
