"""Sources: what becomes an order of images, ranges of it, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from many import contents, names, write_tables
from pyarrow import parquet

from vggkeras.batch import sources, storage
from vggkeras.batch.manifest import first_change
from vggkeras.batch.sources import Reader, load
from vggkeras.errors import InputError


def rows(source) -> list:
    return list(Reader(source).rows(0, source.count))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos" / "a", 3)
    write_photos(tmp_path / "photos" / "b", 2, suffix=".png")
    (tmp_path / "photos" / "a" / "notes.txt").write_text("")
    (tmp_path / "photos" / ".hidden.png").write_text("")
    return tmp_path / "photos"


PLACES = ["a/000.jpg", "a/001.jpg", "a/002.jpg", "b/000.png", "b/001.png"]


def test_folders_patterns_lists_and_urls_give_the_same_images(photos, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="an extra")
    (photos / "list.csv").write_text("label;path\n" + "".join(f"1;{p}\n" for p in PLACES))
    coded = pa.array(PLACES).dictionary_encode()
    parquet.write_table(pa.table({"file": PLACES}), photos / "list.parquet")
    parquet.write_table(pa.table({"file": coded}), photos / "coded.parquet")
    memory = fsspec.filesystem("memory")
    for place in PLACES:
        memory.pipe(f"/store/{place}", (photos / place).read_bytes())
    memory.pipe("/store/list.csv", (photos / "list.csv").read_bytes())
    url = f"file://{photos}"
    asked = {
        "photos": [f"photos/{p}" for p in PLACES],
        "photos/*/*.[jp][pn]g": [f"photos/{p}" for p in PLACES],
        "photos/b/**": [f"photos/{p}" for p in PLACES[3:]],
        "photos/list.csv": PLACES,
        "photos/list.parquet": PLACES,
        "photos/coded.parquet": PLACES,
        url: [f"{url}/{p}" for p in PLACES],
        f"{url}/**/*.png": [f"{url}/{p}" for p in PLACES[3:]],
        f"{url}/list.csv": PLACES,
        "memory://store": [f"memory://store/{p}" for p in PLACES],
        "memory://store/a/*": [f"memory://store/{p}" for p in PLACES[:3]],
        "memory://store/list.csv": PLACES,
    }
    for place, ids in asked.items():
        source = load([place], tmp_path / "index.parquet")
        assert [name for name, _ in rows(source)] == ids, place
        for (name, where), expected in zip(rows(source), ids, strict=True):
            found = storage.fetched(where)
            found = found if isinstance(found, bytes) else Path(found).read_bytes()
            tail = expected.removeprefix("photos/").split("store/")[-1].split("photos/")[-1]
            assert found == (photos / tail).read_bytes(), (place, name)


def test_ids_and_bytes_of_tables(tmp_path):
    write_tables(tmp_path / "with", 5, a_table=3)
    source = load(["with/*.parquet"], tmp_path / "none")
    images = contents(5)
    assert rows(source) == list(zip(names(0, 5), images, strict=True))
    assert not (tmp_path / "none").exists()
    both = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images[:4])]
    parquet.write_table(pa.table({"image": [*both, None]}), "hub.parquet")
    source = load(["hub.parquet"], tmp_path / "none")
    expected = [(f"hub.parquet:{i}", image) for i, image in enumerate([*images[:4], None])]
    assert rows(source) == expected
    assert source.columns == ("bytes of images from column image, ids from FILE:ROW",)


def test_what_is_refused_is_named(photos, tmp_path):
    index = tmp_path / "index.parquet"
    (tmp_path / "empty").mkdir()
    write_tables(tmp_path / "tables", 3)
    table = "tables/000000000.parquet"
    Path("twice.csv").write_text("image\na.png\nb.png\na.png\n")
    Path("ids.csv").write_text("image,id\na.png,7\nb.png,\n")
    Path("none.csv").write_text("label\n1\n")
    Path("head.csv").write_text("image\n")
    Path("gap.csv").write_text("image,label\na.png,1\n,1\n")
    Path("bad.parquet").write_text("PAR1")
    parquet.write_table(pa.table({"image": [3, 4]}), "numbers.parquet")
    wrong = {
        ("numbers.parquet",): "column image is of type int64: expected paths",
        ("nothing.png",): "No image at nothing.png",
        ("empty",): "empty has no images",
        ("*.gif",): r"\*.gif names no file",
        ("twice.csv",): "1 ids are those of several images: a.png",
        ("photos", "photos/a/001.jpg"): "several images: photos/a/001.jpg",
        (table, table): "asked for more than once",
        (table, "photos"): "photos does not",
        ("ids.csv",): "row 2 has no id",
        ("none.csv",): "none.csv has no column image",
        ("head.csv",): "expected a row an image or more; received none",
        ("gap.csv",): "row 2 has no image",
        ("bad.parquet",): "cannot be read as .parquet",
        ("nowhere://x/y",): "nowhere://x cannot be opened",
    }
    for asked, message in wrong.items():
        with pytest.raises(InputError, match=message):
            load(asked, index)
    parquet.write_table(pa.table({"id": ["a", "b", "a"], "image": contents(3)}), "same.parquet")
    with pytest.raises(InputError, match="1 ids are those of several images: a"):
        load(["same.parquet"], index)


def test_hashes_that_meet_are_not_ids_that_meet(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "hash", len, raising=False)
    write_tables(tmp_path / "tables", 30)
    assert load(["tables/*.parquet"], tmp_path / "none").count == 30


def test_a_change_of_a_file_is_a_change_of_the_source(photos, tmp_path):
    before = load(["photos"], tmp_path / "before")
    assert load(["photos"], tmp_path / "now").digest == before.digest
    assert first_change(tmp_path / "before", tmp_path / "now") == ""
    os.utime("photos/a/001.jpg", ns=(1, 1))
    assert load(["photos"], tmp_path / "now").digest != before.digest
    changed = first_change(tmp_path / "before", tmp_path / "now")
    assert changed == "; the first image that has changed is photos/a/001.jpg"
    Path("photos/a/000.jpg").unlink()
    load(["photos"], tmp_path / "now")
    changed = first_change(tmp_path / "before", tmp_path / "now")
    assert changed == "; the first difference is photos/a/001.jpg, where photos/a/000.jpg was"


@pytest.fixture(scope="module")
def of_groups(tmp_path_factory):
    """Three tables, their row groups of different sizes, one table empty."""
    folder = tmp_path_factory.mktemp("tables")
    first = 0
    for number, sizes in enumerate([[3, 1, 20], [], [17, 2]]):
        schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
        with parquet.ParquetWriter(folder / f"{number}.parquet", schema) as writer:
            for size in sizes:
                ids = names(first, first + size)
                writer.write_table(pa.table([ids, [i.encode() for i in ids]], schema=schema))
                first += size
    return load([str(folder / "*.parquet")], folder / "none")


RANGES = st.tuples(st.integers(0, 43), st.integers(0, 43)).map(sorted)


@given(st.lists(RANGES, max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_ranges_in_any_order_are_those_of_the_whole(of_groups, ranges):
    assert of_groups.count == 43
    reader = Reader(of_groups)
    for start, stop in ranges:
        assert [name for name, _ in reader.rows(start, stop)] == names(start, stop)
