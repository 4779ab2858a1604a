"""Lists: a row an image, in .csv and .parquet files, with what can be wrong with them."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import encoded, photo, tiny, write_photos
from PIL import Image
from pyarrow import parquet

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.training.train import train

COUNT = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Class folders."""
    root = tmp_path_factory.mktemp("lists") / "set"
    for c, name in enumerate(("cat", "dog")):
        write_photos(root / name, COUNT, 100 * c)
    return root


def rows_of(images: Path, split: bool = False) -> list[dict[str, str]]:
    paths = sorted(images.rglob("*.jpg"))
    rows = [{"image": str(path.relative_to(images)), "label": path.parent.name} for path in paths]
    if split:
        for number, row in enumerate(rows):
            row["split"] = ("train", "val", "train", "test")[number % 4]
    return rows


def write_csv(path: Path, rows: list[dict], separator: str = ",", encoding: str = "utf-8") -> Path:
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict], metadata: dict | None = None) -> Path:
    table = pa.Table.from_pylist(rows)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    parquet.write_table(table, path)
    return path


def examples(data, split: str) -> list[tuple[bytes, int]]:
    return [(content, label) for _, content, label in data.split(split).examples()]


def test_a_list_of_a_folder_is_that_folder(images):
    """The same images are held out, for the hash is of class and file name."""
    data, folder = (
        vggkeras.load_data(str(write_csv(images / "list.csv", rows_of(images)))),
        vggkeras.load_data(str(images)),
    )
    assert data.class_names == folder.class_names
    for split in ("train", "validation"):
        assert examples(data, split) == examples(folder, split)
    assert data.validation == folder.validation
    assert data.held_out == 0.2
    whole = vggkeras.load_data(str(images / "list.csv"), whole=True)
    assert whole.split("all").count == 2 * COUNT


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_of_spreadsheets_are_read(images, separator):
    rows = [
        {"Filename": row["image"], "Class": row["label"], "Subset": row["split"]}
        for row in rows_of(images, split=True)
    ]
    data = vggkeras.load_data(str(write_csv(images / "x.csv", rows, separator, "utf-8-sig")))
    assert {name: split.count for name, split in data.splits.items()} == {
        "train": COUNT,
        "validation": COUNT // 2,
        "test": COUNT // 2,
    }
    assert data.validation == "the rows of validation in x.csv"
    with pytest.raises(InputError, match="has validation images of its own"):
        vggkeras.load_data(str(images / "x.csv"), validation=0.3)


def test_parquet_lists_hold_paths_or_the_files(images):
    rows = rows_of(images, split=True)
    paths = vggkeras.load_data(str(write_parquet(images / "paths.parquet", rows)))
    for row in rows:
        row["image"] = (images / row["image"]).read_bytes()
    inside = vggkeras.load_data(str(write_parquet(images / "inside.parquet", rows)))
    for split in ("train", "validation", "test"):
        assert examples(paths, split) == examples(inside, split)
    assert inside.split("train").image_name(3) == "inside/train[3]"


def test_files_inside_and_beside_a_list_are_read_alike(images):
    rows = [row | {"image": {"path": row["image"], "bytes": None}} for row in rows_of(images)]
    plain = vggkeras.load_data(str(write_parquet(images / "beside.parquet", rows)))
    for row in rows[::3]:
        content = (images / row["image"]["path"]).read_bytes()
        row["image"] = {"path": None, "bytes": content}
    mixed = vggkeras.load_data(str(write_parquet(images / "mixed.parquet", rows)), whole=True)
    both = [(content, label) for s in plain.splits for content, label in examples(plain, s)]
    assert sorted(examples(mixed, "all")) == sorted(both)


def test_labels_of_dates_are_refused(images):
    day = datetime.date(2014, 9, 4)
    rows = [row | {"label": day} for row in rows_of(images)]
    with pytest.raises(InputError, match="row 1 has no label"):
        vggkeras.load_data(str(write_parquet(images / "dates.parquet", rows)))


def test_class_names_of_hugging_faces_parquet_files_are_used(images):
    rows = [
        {
            "image": {"bytes": (images / row["image"]).read_bytes(), "path": None},
            "label": number % 2,
        }
        for number, row in enumerate(rows_of(images))
    ]
    names = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    data = vggkeras.load_data(str(write_parquet(images / "hub.parquet", rows, names)))
    assert data.class_names == ["no", "yes"]
    rows[3]["label"] = 2
    with pytest.raises(InputError, match="label 2 is none of 0 to 1"):
        vggkeras.load_data(str(write_parquet(images / "hub.parquet", rows, names)))


def test_numbers_are_classes_in_their_order(images):
    rows = [
        {"image": row["image"], "label": (2, 10, 9)[number % 3]}
        for number, row in enumerate(rows_of(images))
    ]
    for write, name in ((write_csv, "n.csv"), (write_parquet, "n.parquet")):
        data = vggkeras.load_data(str(write(images / name, rows)))
        assert data.class_names == ["2", "9", "10"]


def changed(rows: list[dict], number: int, **values) -> list[dict]:
    return [row | values if i == number else row for i, row in enumerate(rows)]


BAD = {
    "one missing": (
        lambda rows: changed(rows, 2, image="no.jpg"),
        r"1 files that are not there.*no",
    ),
    "many missing": (
        lambda rows: [row | {"image": f"no/{i}.jpg"} for i, row in enumerate(rows)],
        rf"names {2 * COUNT} files that are not there, of {2 * COUNT}: .*no/9.jpg and 38 more",
    ),
    "twice": (lambda rows: [*rows, rows[3]], "names 1 files more than once: .*003.jpg"),
    "two classes": (
        lambda rows: [*rows, rows[3] | {"label": "dog"}],
        "names 1 files more than once",
    ),
    "floats": (
        lambda rows: [row | {"label": 0.5 + i % 2} for i, row in enumerate(rows)],
        "labels such as 0.5 are no classes",
    ),
    "no label": (lambda rows: changed(rows, 4, label=""), "row 5 has no label"),
    "no image": (lambda rows: changed(rows, 5, image=" "), "row 6 has no image"),
    "unknown split": (
        lambda rows: [
            row | {"split": "hold-out" if i == 3 else "train"} for i, row in enumerate(rows)
        ],
        "has splits 'hold-out': expected train, validation",
    ),
    "no train": (
        lambda rows: [row | {"split": "test"} for row in rows],
        "none of train to train on",
    ),
    "one class": (lambda rows: [row | {"label": "cat"} for row in rows], "one class, 'cat'"),
    "no column of labels": (
        lambda rows: [{"image": row["image"], "kind": row["label"]} for row in rows],
        "has no column label: expected one of label, class",
    ),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_list_is_said(images, name, suffix):
    change, message = BAD[name]
    path = images / f"bad{suffix}"
    (write_csv if suffix == ".csv" else write_parquet)(path, change(rows_of(images)))
    with pytest.raises(InputError, match=message):
        vggkeras.load_data(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no column image"),
        ("a.csv", b"image,label\n", "has no rows"),
        ("a.csv", b"image,label\nx.jpg\n", "line 2 has more or fewer fields"),
        ("a.csv", b"image,label\nx.jpg,a,b\n", "line 2 has more or fewer fields"),
        ("a.csv", b"\xff\xfe\x00image", "no UTF-8"),
        ("a.parquet", b"PAR1 and more", "is no .parquet file"),
        ("a.txt", b"x.jpg a", "is no list of images"),
    ],
)
def test_a_file_that_is_no_list_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        vggkeras.load_data(str(tmp_path / name))


def test_an_image_of_a_list_that_is_none_is_named_or_left_out(images):
    rows = rows_of(images)
    (images / "cat" / "text.jpg").write_text("hello")
    rows.append({"image": "cat/text.jpg", "label": "cat"})
    path = str(write_csv(images / "text.csv", rows))
    with pytest.raises(InputError, match=r"text\.jpg is no JPEG"):
        vggkeras.load_data(path)
    assert vggkeras.load_data(path, skip_unreadable=True).skipped[0].endswith("cat/text.jpg")
    (images / "cat" / "text.jpg").unlink()


@pytest.mark.slow
def test_a_run_on_a_list_is_that_on_its_folder_and_everything_after_works(
    images, tmp_path, command
):
    listed = write_csv(images / "run.csv", rows_of(images))
    rows = [
        row | {"image": encoded(Image.fromarray(photo(i)), "PNG")}
        for i, row in enumerate(rows_of(images))
    ]
    inside = write_parquet(images / "run.parquet", rows)
    runs = [
        train(tiny(tmp_path / Path(data).name, data=str(data), epochs=1, batch_norm=False))
        for data in (images, listed, inside)
    ]
    for a, b in zip(runs[0].model.get_weights(), runs[1].model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for run in runs[1:]:
        figures = tmp_path / "figures.json"
        code, _, err = command(
            cli, "evaluate", "--model", run.path, "--data", run.record.card.data, "--json", figures
        )
        assert code == 0, err
        (row,) = json.loads(figures.read_text())
        accuracy = row["correct"] / row["images"]
        assert accuracy == pytest.approx(run.record.metrics["val_accuracy"], abs=1e-6)
