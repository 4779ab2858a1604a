"""The first pass over a run's images, and when it is left out."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import photo, tiny, write_photos
from rich.console import Console

import vggkeras
from vggkeras.errors import InputError
from vggkeras.training import pass_cache
from vggkeras.training.first_pass import read_through
from vggkeras.training.train import train

CACHED = "have not changed since they were read"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder, in which files are remembered however young they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pass_cache, "SETTLED", 0.0)
    return tmp_path / "cache" / "vggkeras" / "first-pass"


@pytest.fixture
def read(photos):
    """read(**options of load_data) -> (data, card, what was printed)."""

    def call(channels=3, **options):
        log = Console(file=io.StringIO())
        data = vggkeras.load_data(str(photos), **options)
        recipe = vggkeras.Recipe(**options, channels=channels)
        data, card, seconds = read_through(data, recipe, log)
        assert seconds > 0
        return data, card, log.file.getvalue()

    return call


def test_files_are_read_once_and_the_second_time_has_the_same_bits(read, photos):
    data, card, said = read()
    assert "reading photos/train: 16 images" in said
    again, remembered, said = read()
    assert f"24 images of {photos} {CACHED}" in said
    assert "reading" not in said
    assert remembered == card  # floats and all
    assert {name: split.count for name, split in again.splits.items()} == {
        name: split.count for name, split in data.splits.items()
    }


def rewritten(path: Path) -> None:
    """Write other bytes of the same length, and set the time back."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "rewritten": lambda photos: rewritten(photos / "train" / "cat" / "001.jpg"),
    "touched": lambda photos: os.utime(photos / "val" / "dog" / "001.jpg"),
    "added": lambda photos: write_photos(photos / "val" / "dog", 5, 500),
    "removed": lambda photos: (photos / "train" / "cat" / "001.jpg").unlink(),
    "renamed": lambda photos: (photos / "val" / "cat" / "001.jpg").rename(
        photos / "val" / "cat" / "1.jpg"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_changed_file_has_all_of_them_read(read, photos, change):
    read()
    CHANGES[change](photos)
    assert CACHED not in read()[2]
    assert CACHED in read()[2]


@pytest.mark.parametrize("name", ["STATISTICS", "pillow"])
def test_other_code_reads_again(read, monkeypatch, name):
    read()
    if name == "pillow":
        monkeypatch.setattr(pass_cache.Image, "__version__", "0.1")
    else:
        monkeypatch.setattr(pass_cache, name, 99)
    assert CACHED not in read()[2]


def damaged(path: Path, how: str) -> None:
    value = json.loads(path.read_text())
    if how == "a number":
        value["card"]["mean_rgb"][0] += 1
    elif how == "of other images":
        value["card"]["smallest_sides"] = {"40": 3}
        value["sha256"] = pass_cache._sha256(json.dumps(value["card"]))
    elif how == "no card":
        value["card"] = [1]
        value["sha256"] = pass_cache._sha256("[1]")
    text = json.dumps(value)
    path.write_text(text[: len(text) // 2] if how == "cut" else text)
    if how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "how", ["a number", "of other images", "no card", "cut", "empty", "a pipe"]
)
def test_a_damaged_entry_is_none(read, cache, how):
    _, card, _ = read()
    (path,) = cache.iterdir()
    damaged(path, how)
    _, again, said = read()
    assert CACHED not in said
    assert again == card
    assert CACHED in read()[2]


def test_an_entry_of_somebody_else_is_none(read, monkeypatch):
    read()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert CACHED not in read()[2]


def test_files_changed_just_now_are_not_remembered(read, monkeypatch):
    monkeypatch.setattr(pass_cache, "SETTLED", 1e9)
    read()
    assert CACHED not in read()[2]


def test_unreadable_images_are_remembered_and_still_an_error(read, photos):
    bad = photos / "train" / "dog" / "002.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    _, card, said = read(skip_unreadable=True)
    assert "skipped 1 unreadable images" in said
    data, again, said = read(skip_unreadable=True)
    assert CACHED in said
    assert f"skipped 1 unreadable images: {bad}" in said
    assert again == card
    assert data.split("train").count == 15
    assert data.skipped == (str(bad),)
    with pytest.raises(InputError, match=r"dog/002\.jpg cannot be read"):
        read()


def test_a_cache_that_cannot_be_written_stops_nothing(read, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "the next run will read all images again" in read()[2]
    assert "read all images again" in read()[2]


def test_images_in_memory_are_read_again_at_once(cache):
    log = Console(file=io.StringIO())
    for _ in range(2):
        read_through(vggkeras.load_data("digits"), vggkeras.Recipe(), log)
    assert log.file.getvalue().count("reading digits/train: 1,437 images") == 2
    assert not cache.exists()


@pytest.fixture
def records(tmp_path, monkeypatch) -> Path:
    """A folder with a data set of TensorFlow Datasets, `tfds:photographs`: 20 photographs."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    # Registered, its name could be taken once in a process.
    with registered.skip_registration():

        class Photographs(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(20):
                    yield i, {"image": photo(i), "label": i % 2}

    builder = Photographs(data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    return Path(builder.data_dir)


def test_records_are_known_by_their_files(records):
    log = Console(file=io.StringIO(), width=200)
    cards = []
    for _ in range(2):
        data = vggkeras.load_data("tfds:photographs")
        cards.append(read_through(data, vggkeras.Recipe(), log)[1])
    assert cards[0] == cards[1]
    assert f"20 images of tfds:photographs {CACHED}" in log.file.getvalue()
    for path in records.glob("*tfrecord*"):
        os.utime(path)
    read_through(data, vggkeras.Recipe(), log)
    assert log.file.getvalue().count(CACHED) == 1


def test_gray_and_color_are_remembered_apart(read):
    _, color, _ = read()
    _, gray, said = read(channels=1)
    assert CACHED not in said
    assert len(gray.mean_rgb) == 1
    assert read()[1] == color
    assert read(channels=1)[1] == gray


def test_a_run_counts_the_seconds_of_reading(photos, tmp_path, monkeypatch):
    recipe = tiny(tmp_path / "run", data=str(photos), epochs=1, batch_norm=False)
    run = train(recipe, Console(quiet=True))
    assert 0 <= run.record.reading_seconds <= run.record.seconds
    shutil.rmtree(tmp_path / "run" / "resume")
    assert run.metadata["reading_seconds"] == run.record.reading_seconds
