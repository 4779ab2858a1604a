"""Data strings, every kind of image file, and the errors for bad ones."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import KINDS, bare_run, encoded, photo, write_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import vggkeras
from export import comparison, samples
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding, sources, splits, statistics
from vggkeras.errors import InputError
from vggkeras.features.extraction import load_images
from vggkeras.report.sources import load_evaluation_data


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb(kind):
    data, expected, tolerance = KINDS[kind]
    image = decoding.decode(data)
    assert image.dtype == np.uint8
    assert image.shape == (48, 40, 3)
    assert np.abs(image.astype(int) - np.asarray(expected).astype(int)).max() <= tolerance


def test_transparent_pixels_lie_on_white():
    image = np.dstack([photo(2), np.full((48, 40), 255, np.uint8)])
    image[:10, :, 3] = 0
    rgb = decoding.decode(encoded(Image.fromarray(image), "PNG"))
    assert (rgb[:10] == 255).all()
    np.testing.assert_array_equal(rgb[10:], image[10:, :, :3])


def test_digits_are_embedded_and_always_split_the_same_way():
    a, b = vggkeras.load_data("digits"), vggkeras.load_data("digits")
    assert a.splits["train"].count + a.splits["validation"].count == 1797
    np.testing.assert_array_equal(a.splits["validation"].labels, b.splits["validation"].labels)
    for split in a.splits.values():
        fraction = np.bincount(split.labels) / split.count
        assert np.abs(fraction - 0.1).max() < 0.01
    _, first, label = next(a.splits["train"].examples())
    assert decoding.decode(first).shape == (32, 32, 3)
    assert a.class_names[label] == str(label)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_imagenets_imagenettes_and_country211s_layouts(tmp_path, name):
    for split in ("train", name, "test"):
        for wnid in ("n01440764", "n02102040"):
            write_photos(tmp_path / "set" / split / wnid, 2, suffix=".JPEG")
    (tmp_path / "set" / "train" / "n01440764" / ".DS_Store").write_text("x")
    (tmp_path / "set" / "noisy_imagenette.csv").write_text("x")
    data = vggkeras.load_data(str(tmp_path / "set"))
    assert data.class_names == ["n01440764", "n02102040"]
    assert {k: s.count for k, s in data.splits.items()} == {"train": 4, "validation": 4, "test": 4}
    assert data.split("val") is data.splits["validation"]
    assert [label for _, _, label in data.split("train").examples()] == [0, 0, 1, 1]
    with pytest.raises(InputError, match="no split 'dev'"):
        data.split("dev")


def test_class_folders_alone_are_split_by_a_stable_hash(tmp_path):
    for name in ("a", "b"):
        write_photos(tmp_path / "set" / name, 40)
    before = vggkeras.load_data(str(tmp_path / "set"))
    held = {"/".join(p.split("/")[-2:]) for p in before.splits["validation"].sources}
    assert before.splits["train"].count + len(held) == 80
    assert 4 <= len(held) <= 28
    shutil.move(tmp_path / "set", tmp_path / "moved")
    (tmp_path / "moved" / "a" / "000.jpg").unlink()
    after = vggkeras.load_data(str(tmp_path / "moved"))
    assert {"/".join(p.split("/")[-2:]) for p in after.splits["validation"].sources} == held - {
        "a/000.jpg"
    }


def test_class_folders_hold_out_the_fraction_that_is_asked_for(tmp_path):
    for name in ("a", "b"):
        write_photos(tmp_path / "set" / name, 60)
    held, fractions = [], (0.05, 0.1, 0.2, 0.35, 0.5)
    for fraction in fractions:
        data = vggkeras.load_data(str(tmp_path / "set"), validation=fraction)
        held.append(set(data.split("validation").sources))
        assert len(held[-1]) + data.split("train").count == 120
        assert data.held_out == fraction
        assert data.validation.startswith(f"held out: {fraction} of the images")
    assert all(few < more for few, more in pairwise(held))
    assert [len(each) / 120 for each in held] == pytest.approx(fractions, abs=0.1)
    default = vggkeras.load_data(str(tmp_path / "set"))
    assert set(default.split("validation").sources) == held[2]
    by_hash = {
        path
        for path in default.split("train+val").sources
        if int.from_bytes(hashlib.sha256(path[-9:].encode()).digest()[:8], "big") % 5 == 0
    }
    assert held[2] == by_hash  # version 0.1's rule


@pytest.mark.parametrize("fraction", [0.0, 0.51, -0.2, float("nan")])
def test_a_fraction_to_hold_out_is_in_its_range(fraction, photos):
    with pytest.raises(InputError, match=r"validation must be a fraction in \(0, 0\.5\]; received"):
        vggkeras.load_data(str(photos), validation=fraction)


def test_nothing_is_held_out_of_data_with_validation_images_of_their_own(photos):
    for spec, own in (("digits", "a fixed fifth of each class"), (str(photos), "photos/val")):
        with pytest.raises(InputError, match=rf"has validation images of its own, .*{own}: leave"):
            vggkeras.load_data(spec, validation=0.1)
        data = vggkeras.load_data(spec)
        assert data.validation.endswith(own)
        assert data.held_out is None


def test_mean_and_covariance_are_of_every_pixel(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    mean, covariance = statistics.rgb_statistics(
        [pixels for _, pixels in statistics.read_all(split)]
    )
    pixels = np.concatenate(
        [np.asarray(Image.open(path)).reshape(-1, 3) for path in split.sources]
    )  # all of one size
    np.testing.assert_allclose(mean, pixels.mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True))


def test_images_of_any_size_weigh_the_same(tmp_path):
    for name, sizes in {"a": [(60, 40), (20, 90)], "b": [(33, 33)]}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.fromarray(photo(i, *size)).save(tmp_path / "train" / name / f"{i}.png")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    split = vggkeras.load_data(str(tmp_path)).split("train")
    images = [pixels for _, pixels in statistics.read_all(split)]
    assert [pixels.smallest_side for pixels in images] == [40, 20, 33]
    mean, covariance = statistics.rgb_statistics(images)
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3).astype(float) for path in split.sources]
    np.testing.assert_allclose(mean, np.mean([p.mean(axis=0) for p in pixels], axis=0))
    weights = np.concatenate([np.full(len(p), 1 / len(p) / 3) for p in pixels])
    np.testing.assert_allclose(
        covariance, np.cov(np.concatenate(pixels).T, bias=True, aweights=weights)
    )


def test_bad_folders_are_named(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    write_photos(tmp_path / "one" / "cat", 3)
    write_photos(tmp_path / "strange" / "train" / "cat", 2)
    write_photos(tmp_path / "strange" / "train" / "dog", 2)
    write_photos(tmp_path / "strange" / "val" / "cow", 2)
    write_photos(tmp_path / "few" / "cat", 1)
    write_photos(tmp_path / "few" / "dog", 1)
    for spec, message in {
        "missing": "Unknown data 'missing': expected digits, tfds:NAME",
        "empty": "has no images",
        "one": "has one class, 'cat'",
        "strange": "'cow' that train has not",
        "few": "too few images",
        "tfds:no_such_set": "TensorFlow Datasets has no 'no_such_set'",
    }.items():
        with pytest.raises(InputError, match=message):
            vggkeras.load_data(spec)


@pytest.mark.parametrize("content", [b"hello, I am text", b""])
def test_a_file_that_is_not_an_image_is_named_before_any_is_decoded(photos, content):
    bad = photos / "train" / "cat" / "003.jpg"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=r"train/cat/003\.jpg is no JPEG"):
        vggkeras.load_data(str(photos))
    data = vggkeras.load_data(str(photos), skip_unreadable=True)
    assert data.skipped == (str(bad),)
    assert data.split("train").count == 15


def test_a_truncated_image_is_named(photos):
    path = photos / "val" / "dog" / "001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"val/dog/001\.jpg cannot be read"):
        list(augment.center_crops(vggkeras.load_data(str(photos)).split("val"), (32, 32), 32))


def check_shuffled(split):
    """Every epoch has every image once, in another order, and can be entered anywhere."""
    examples = {i: (e, label) for i, e, label in split.examples()}

    def row(seed, start, count):
        taken = list(split.shuffled(seed, start).take(count).as_numpy_iterator())
        assert all((encoded_, label) == examples[index] for _, index, encoded_, label in taken)
        return [(int(epoch), int(index)) for epoch, index, _, _ in taken]

    count = split.count
    whole = row(5, 0, 3 * count)
    epochs = [[index for epoch, index in whole if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == split.indices() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for start in (0, 1, count - 1, count, 2 * count + 3):
        assert row(5, start, 3 * count - start) == whole[start:]
    assert row(6, 0, count) != whole[:count]


def test_shuffled_images_can_be_entered_anywhere(photos):
    check_shuffled(vggkeras.load_data(str(photos)).split("train"))
    check_shuffled(vggkeras.load_data("digits").split("train").without(range(30, 1437)))


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    """A TensorFlow data set made here: 20 JPEGs, train alone."""
    import tensorflow_datasets as tfds

    class VggkerasTiny(tfds.core.GeneratorBasedBuilder):
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

    folder = tmp_path_factory.mktemp("tfds")
    VggkerasTiny(data_dir=folder).download_and_prepare()
    return folder


def test_tfds_records_come_undecoded_and_hold_out_a_fifth(tiny_tfds, monkeypatch):
    import tensorflow_datasets as tfds

    builder = tfds.builder("vggkeras_tiny", data_dir=tiny_tfds)
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    data = vggkeras.load_data("tfds:vggkeras_tiny")
    assert {k: s.count for k, s in data.splits.items()} == {"train": 16, "validation": 4}
    examples = list(data.split("train").examples())
    assert all(e.startswith(b"\xff\xd8\xff") for _, e, _ in examples)
    rest = data.split("train").without([3, 4])
    assert rest.count == len(list(rest.examples())) == 14
    check_shuffled(rest)
    assert (data.validation, data.held_out) == ("split train[80%:]", 0.2)
    for fraction, train, validation in ((0.1, 18, "train[90%:]"), (1 / 3, 13, "train[13:]")):
        other = vggkeras.load_data("tfds:vggkeras_tiny", validation=fraction)
        assert (other.split("train").count, other.validation) == (train, f"split {validation}")
        assert other.split("validation").count == 20 - train
    with pytest.raises(InputError, match=r"too few images to hold out 0\.01 of them"):
        vggkeras.load_data("tfds:vggkeras_tiny", validation=0.01)
    # Version 0.1 held out a tenth, and its models' cards do not say so.
    old, new = (
        ModelCard(data="tfds:vggkeras_tiny"),
        ModelCard(data="tfds:vggkeras_tiny", held_out=0.3),
    )
    for cards, count in (([old], 2), ([new], 6), ([old, new], 2), ([], 4)):
        found = sources.load_data_of(cards, "tfds:vggkeras_tiny")
        assert found.split("validation").count == count
        parts = [{e for _, e, _ in found.split(part).examples()} for part in ("train", "val")]
        assert not parts[0] & parts[1]
        assert len(parts[0] | parts[1]) == 20


def test_what_a_models_file_names_is_read_where_it_is_prepared_and_never_fetched(
    tiny_tfds, monkeypatch
):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.setattr(file_utils, "list_data_dirs", lambda *_, **__: [str(tiny_tfds)])
    monkeypatch.setattr(tfds, "builder", lambda name: pytest.fail(f"{name} would be built"))
    data = vggkeras.load_data("tfds:vggkeras_tiny", fetch=False)
    assert {k: s.count for k, s in data.splits.items()} == {"train": 16, "validation": 4}
    assert len(list(data.split("train").examples())) == 16
    for spec in (
        *("tfds:mnist", "tfds:huggingface:mnist", "tfds:kaggle:x/y", "tfds:../vggkeras_tiny"),
        *("tfds:vggkeras_tiny/data_dir=gs://bucket", "tfds:", r"\\host\share", "//host/share"),
    ):
        with pytest.raises(InputError, match=r"a model's file names it.*give --data"):
            vggkeras.load_data(spec, fetch=False)


def test_export_compare_and_report_fetch_nothing_that_a_model_names(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda name: pytest.fail(f"{name} would be built"))
    model = SimpleNamespace(card=ModelCard(data="tfds:mnist"), channels=3, boxes=None)
    pair = SimpleNamespace(models={"reference": model})
    for ask in (
        lambda: samples.parity_images(model, None, 1, Console()),
        lambda: comparison._samples(pair, None, 1),
        lambda: load_evaluation_data(model, None, False),
    ):
        with pytest.raises(InputError, match=r"tfds:mnist is not prepared .* give --data"):
            ask()


needs_imagenette = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "imagenette", "160px-v2")),
    reason="TFDS_DATA_DIR has no imagenette/160px-v2: the test on real photographs",
)


@needs_imagenette
def test_imagenettes_photographs():
    data = vggkeras.load_data("tfds:imagenette/160px-v2")
    assert (data.split("train").count, data.split("validation").count) == (9469, 3925)
    assert len(data.class_names) == 10
    few = data.split("validation").without(range(40, 3925))
    crops = list(augment.center_crops(few, (64, 64), 73))
    assert len(crops) == 40
    assert all(crop.shape == (64, 64, 3) for _, crop, _ in crops)
    import tensorflow as tf

    for _, data_, _ in few.examples():  # real JPEGs: both decoders, the same pixels
        pixels = tf.io.decode_jpeg(data_, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(pixels, decoding.decode(data_))


def test_data_to_score_are_whole_whatever_folders_there_are(tmp_path):
    for parent in ("alone", "one/test", "other/val"):
        for label in ("cat", "dog"):
            write_photos(tmp_path / parent / label, 3)
    for name, split in (("alone", "all"), ("one", "test"), ("other", "validation")):
        found = vggkeras.load_data(str(tmp_path / name), whole=True)
        assert list(found.splits) == [found.default_split] == [split]
        assert found.split(split).count == 6
        assert np.bincount(found.split("all").labels).tolist() == [3, 3]
    with pytest.raises(InputError, match="has test/, and no train/ to train on"):
        vggkeras.load_data(str(tmp_path / "one"))


def test_one_image_a_class_is_enough_to_score(tmp_path):
    for label in ("a", "b", "c"):
        write_photos(tmp_path / label, 1)
    assert vggkeras.load_data(str(tmp_path), whole=True).split("all").labels.tolist() == [0, 1, 2]


def test_a_folder_is_split_as_in_training_where_that_is_meant(tmp_path):
    for label in ("cat", "dog"):
        write_photos(tmp_path / label, 40)
    spec = str(tmp_path)
    whole, trained = vggkeras.load_data(spec, whole=True), vggkeras.load_data(spec)
    cards = [ModelCard(data=data) for data in ("elsewhere", "")]
    assert sources.as_trained(whole, (), cards) is whole
    on_these = ModelCard(data=trained.spec)
    for found in (
        sources.as_trained(whole, (), [on_these]),
        sources.as_trained(whole, ["val"], ()),
    ):
        assert found.splits["validation"].sources == trained.splits["validation"].sources
    asked = sources.as_trained(whole, ["val"], ())
    fewer = sources.as_trained(asked, ["val"], [on_these, replace(on_these, held_out=0.1)])
    expected = vggkeras.load_data(spec, validation=0.1).splits["validation"].sources
    assert fewer.splits["validation"].sources == expected
    both = trained.split("train+val")
    assert sorted(both.sources) == sorted(whole.split("all").sources)
    assert both.name.endswith("/train+validation")


def test_a_class_may_be_called_test(tmp_path):
    for label in ("test", "val"):
        write_photos(tmp_path / label, 2)
    found = vggkeras.load_data(str(tmp_path), whole=True)
    assert (found.class_names, list(found.splits)) == (["test", "val"], ["all"])


def test_export_and_features_take_all_of_other_data(tmp_path):
    folder = tmp_path / "parent" / "test"
    for label in ("cat", "dog"):
        write_photos(folder / label, 40)

    def shown(trained_on: str, name: str, spec: Path, whole: bool = True) -> splits.Split:
        model = vggkeras.load(bare_run(tmp_path / name, ["cat", "dog"], trained_on))
        return samples.parity_images(model, str(spec), 0, Console(), whole=whole)[1].split

    held_out = vggkeras.load_data(str(folder)).split("validation").sources
    assert shown("elsewhere", "a", folder).count == 80
    assert shown("elsewhere", "b", folder.parent).name == "parent/test"
    assert shown("elsewhere", "c", folder, whole=False).sources == held_out
    assert shown(str(folder), "d", folder).sources == held_out
    assert list(load_images(str(folder)).splits) == ["all"]
    assert list(load_images(str(folder.parent)).splits) == ["test"]
    assert load_images(str(folder), ["val"]).split("val").sources == held_out


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    share=st.floats(0.01, 1, exclude_min=True),
)
def test_a_sample_has_each_class_in_proportion(counts, share):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    whole = splits.Split("made", len(labels), labels, [str(i) for i in range(len(labels))])
    count = max(1, int(share * len(labels)))
    sample = splits.stratified(whole, count)
    assert sample.count == count
    found = np.bincount(sample.labels, minlength=len(counts))
    assert (abs(found - np.array(counts) * count / len(labels)) < 1 + 1e-9).all()
    assert [labels[int(name)] for name in sample.sources] == sample.labels.tolist()


def test_parts_of_records_are_named_as_tfds_names_them(tiny_tfds, monkeypatch):
    import tensorflow_datasets as tfds

    builder = tfds.builder("vggkeras_tiny", data_dir=tiny_tfds)
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    whole = sources.load_data("tfds:vggkeras_tiny", whole=True)
    everything = whole.split("all")
    half = whole.split("train[:50%]")
    assert (half.count, everything.count) == (10, 20)
    assert len(list(half.examples())) == half.count
    sample = splits.stratified(everything, 3)
    assert len(list(sample.examples())) == sample.count == 3
    with pytest.raises(InputError, match=r"such as train\[:10%\]"):
        whole.split("train[:10")
