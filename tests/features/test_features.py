"""Very deep features by a second road, their files, the linear SVM's protocol, the page of neighbours."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import photo, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from sklearn.svm import LinearSVC

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.data import sources as sources_module
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols
from vggkeras.features import extraction, neighbours, svm
from vggkeras.features.neighbours import choose_queries, nearest
from vggkeras.features.svm import SvmRecall, class_recalls, fit_svm, svm_recall
from vggkeras.runtimes.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return vggkeras.load(run.path)


@pytest.fixture(scope="module")
def form(predictor) -> Predictor:
    return predictor.features_form()


@pytest.fixture(scope="module")
def described(predictor) -> extraction.Described:
    return extraction.describe(predictor, sources_module.load_data("digits"), scales=(32,))


@pytest.fixture(scope="module")
def below_fc1(run) -> Callable[[np.ndarray], np.ndarray]:
    """The trained network up to block 5's pool, on images of any size: uint8 [N, H, W, 3] -> [N, h, w, C]."""
    layers = itertools.takewhile(lambda layer: layer.name != "flatten", run.model.layers[1:])

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def maps(images):
        return functools.reduce(lambda x, layer: layer(x, training=False), layers, images)

    return lambda images: maps(images).numpy()


def second_road(network, below_fc1: Callable, image: np.ndarray, scale: int) -> np.ndarray:
    """fc2's activations averaged over space, float64 [2, units]: an image's at one scale, and its mirror's.

    The FC layers are matrices here, over every place of the last map: of a network of 32 px, each is one of a crop.
    """
    h, w = image.shape[:2]
    size = (scale, round(h * scale / w)) if w <= h else (round(w * scale / h), scale)
    rescaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    maps = below_fc1(np.stack([rescaled, np.fliplr(rescaled)])).astype(np.float64)
    activations = maps.reshape(2, -1, maps.shape[-1])  # [2, places, C]
    for name in ("fc1", "fc2"):
        kernel, bias = network.get_layer(name).get_weights()
        activations = np.maximum(activations @ kernel + bias, 0)
    return activations.mean(axis=1)


def of_length_1(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("scales", [(32,), (50,), (32, 75, 101)])
def test_features_agree_with_a_second_road(run, form, below_fc1, scales):
    images = [
        photo(i, *shape)
        for i, shape in enumerate([(48, 40), (32, 32), (40, 211), (150, 60), (48, 40)])
    ]
    views = np.array(
        [[second_road(run.model, below_fc1, image, q) for q in scales] for image in images]
    )
    for mirrors in (True, False):
        parts = of_length_1(
            views.mean(axis=2) if mirrors else views[:, :, 0]
        )  # [images, scales, units]
        for aggregate in ("average", "stack"):
            known = parts.mean(axis=1) if aggregate == "average" else parts.reshape(len(images), -1)
            found = vggkeras.extract_features(form, images, scales, aggregate, mirrors=mirrors)
            assert found.dtype == np.float32
            np.testing.assert_allclose(
                found, of_length_1(known), atol=2e-6, err_msg=f"{aggregate} {mirrors}"
            )
    # Another image, the mirror and the scale do change something.
    assert np.abs(found[0] - found[4]).max() > 1e-2
    assert np.abs(found - vggkeras.extract_features(form, images, scales, "stack")).max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    scale=st.integers(32, 70),
    seed=st.integers(0, 9),
)
def test_images_of_any_shape_have_features_of_length_1(
    run, form, below_fc1, height, width, scale, seed
):
    image = photo(seed, height, width)
    if max(height, width) > 8 * min(height, width):  # the other side would be thousands of pixels
        image = image[: 8 * width, : 8 * height]
    (row,) = vggkeras.extract_features(form, [image], (scale,))
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        row, of_length_1(second_road(run.model, below_fc1, image, scale).mean(axis=0)), atol=2e-6
    )


def test_the_default_scale_is_the_models_and_no_images_have_no_rows(predictor, form, photos):
    paths = sorted(photos.rglob("*.jpg"))[:3]
    own = vggkeras.extract_features(predictor, paths, (predictor.scale,))
    np.testing.assert_array_equal(vggkeras.extract_features(predictor, paths), own)
    np.testing.assert_array_equal(vggkeras.extract_features(form, paths), own)
    assert vggkeras.extract_features(form, [], (32, 40), "stack").shape == (0, 2 * own.shape[1])


def test_rows_of_zeros_stay_zeros(form):
    dead = replace(form, run=lambda images: np.zeros((len(images), form.features), np.float32))
    for aggregate in ("average", "stack"):
        assert not vggkeras.extract_features(dead, [photo(0), photo(1)], (32, 40), aggregate).any()
    # Dead at one scale alone: the other is all there is.
    half = replace(form, run=lambda images: form.run(images) * (images.shape[1] > 40))
    one, two = (vggkeras.extract_features(half, [photo(0)], scales) for scales in ((40,), (32, 40)))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_memory_holds_a_window_of_images(form):
    given = 0
    ahead = protocols.WINDOW + 8 * (os.cpu_count() or 1) + 1
    waiting = []

    def run(images: np.ndarray) -> np.ndarray:
        waiting.append(given)
        return np.ones((len(images), form.features), np.float32)

    def images() -> Iterator[np.ndarray]:
        nonlocal given
        for given in range(1, ahead + 100):  # noqa: B007
            yield photo(0, 32, 32)

    rows = vggkeras.extract_features(replace(form, run=run), images(), (32,))
    assert len(rows) == ahead + 99
    assert waiting[0] <= ahead


# Files


def test_both_kinds_of_file_hold_the_same(run, predictor, photos, command, tmp_path):
    (photos / "train" / "cat" / "other.bmp").write_bytes(b"BM")
    arguments = [
        "--model",
        run.path,
        "--data",
        photos,
        "--scales",
        32,
        48,
        "--aggregate",
        "stack",
        "--skip-unreadable",
    ]
    told = {}
    for out in ("f.npz", "f.parquet"):
        code, told[out], err = command(
            cli, "features", *arguments, "--out", tmp_path / out, "--json", tmp_path / "f.json"
        )
        assert code == 0, err
    assert "skipped 1 unreadable images" in told["f.npz"]
    with np.load(tmp_path / "f.npz") as archive:
        kept = dict(archive)
    table = parquet.read_table(tmp_path / "f.parquet")
    paths = [path for split in ("train", "val") for path in sorted((photos / split).rglob("*.jpg"))]
    assert kept["names"].tolist() == [str(path.relative_to(photos)) for path in paths]
    assert kept["features"].dtype == np.float32
    np.testing.assert_allclose(
        kept["features"], vggkeras.extract_features(predictor, paths, (32, 48), "stack"), atol=1e-6
    )
    assert kept["class_names"].tolist() == ["cat", "dog"]
    assert kept["labels"].dtype == np.int64
    assert kept["labels"].tolist() == [0] * 8 + [1] * 8 + [0] * 4 + [1] * 4
    assert kept["split"].tolist() == ["train"] * 16 + ["validation"] * 8

    assert table["image"].to_pylist() == kept["names"].tolist()
    assert table["split"].to_pylist() == kept["split"].tolist()
    assert table["label"].to_pylist() == kept["labels"].tolist()
    assert table["class"].to_pylist() == kept["class_names"][kept["labels"]].tolist()
    assert (
        str(table["features"].type)
        == f"fixed_size_list<element: float>[{kept['features'].shape[1]}]"
    )
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), kept["features"])

    about = json.loads(str(kept["about"]))
    assert about == json.loads(table.schema.metadata[b"vggkeras"])
    assert about["model"] == str(run.path / "model.keras")
    assert len(about["sha256"]) == 64
    expected = {
        "scales": [32, 48],
        "aggregate": "stack",
        "mirrors": True,
        "runtime": "keras",
        "splits": ["train", "validation"],
    }
    assert expected.items() <= about.items()
    record = json.loads((tmp_path / "f.json").read_text())
    assert about.items() <= record.items()
    assert [Path(name).name for name in record["skipped"]] == ["other.bmp"]


def test_splits_are_chosen_and_digits_never_mirrored(run, described, command, tmp_path):
    arguments = [
        "--model",
        run.path,
        "--data",
        "digits",
        "--scales",
        32,
        "--out",
        tmp_path / "f.npz",
    ]
    assert command(cli, "features", *arguments, "--split", "val", "validation")[0] == 0
    with np.load(tmp_path / "f.npz") as kept:
        own = described.splits == "validation"
        np.testing.assert_allclose(kept["features"], described.features[own], atol=1e-6)
        assert kept["names"][0] == "validation[0]"
        assert json.loads(str(kept["about"]))["mirrors"] is False


def test_a_folder_of_images_alone_has_no_labels(run, command, tmp_path):
    write_photos(tmp_path / "loose", 5)
    shutil.copy(tmp_path / "loose" / "003.jpg", tmp_path / "loose" / "copy.jpg")
    arguments = ["--model", run.path, "--data", tmp_path / "loose", "--out", tmp_path / "f.parquet"]
    code, _, err = command(cli, "features", *arguments, "--neighbours", tmp_path / "n.html")
    assert code == 0, err
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["label"].to_pylist() == [-1] * 6
    assert table["class"].to_pylist() == [None] * 6
    rows = page_rows(tmp_path / "n.html")
    assert [row[0] for row in rows] == [f"{i:03d}.jpg" for i in range(5)] + ["copy.jpg"]
    assert dict(rows)["003.jpg"][0] == ("copy.jpg", "", "1.000")
    assert all(len(row[1]) == 5 for row in rows)
    code, _, err = command(cli, "features", *arguments, "--svm")
    assert code == 2
    assert "labels of 0: give images in class folders" in err


# The SVM


def test_an_svm_on_features_is_far_better_than_chance_and_repeatable(described):
    found, again, other = (
        svm_recall(described.features, described.labels, 20, 40, 3, seed) for seed in (0, 0, 1)
    )
    assert found.recalls.shape == (3, 10)
    assert found.mean > 0.85
    np.testing.assert_array_equal(found.recalls, again.recalls)
    assert found.costs == again.costs
    assert not np.array_equal(found.recalls, other.recalls)
    low, high = found.interval
    assert low <= found.mean <= high
    assert found.spread == pytest.approx(np.std(found.means, ddof=1))
    assert (
        high - found.mean == pytest.approx(4.302653 * found.spread / 3**0.5, rel=1e-5) or high == 1
    )
    alone = SvmRecall(found.labels, found.costs[:1], found.recalls[:1])
    assert (alone.spread, alone.interval) == (None, None)


def test_only_training_images_decide_c_and_the_classifier(described, monkeypatch):
    labels = described.labels.copy()
    labels[::7] = -1  # left out
    given = []

    def spied(features, labels, seed=0):
        given.append((features, labels, fit_svm(features, labels, seed)))
        return given[-1][2]

    monkeypatch.setattr(svm, "fit_svm", spied)
    first = svm_recall(described.features, labels, 12, 25, 1)
    features, trained_labels, (cost, classifier) = given[0]
    assert np.bincount(trained_labels).tolist() == [12] * 10
    trained = (described.features[:, None, :8] == features[None, :, :8]).all(axis=2).any(axis=1)
    assert np.bincount(labels[trained] + 1).tolist() == [0] + [12] * 10
    noise = np.where(
        trained[:, None],
        described.features,
        np.random.default_rng(0).random(described.features.shape),
    )
    second = svm_recall(noise.astype(np.float32), labels, 12, 25, 1)
    assert second.costs == first.costs == [cost]
    np.testing.assert_array_equal(given[1][2][1].coef_, classifier.coef_)
    assert first.mean > 0.7
    assert second.mean < 0.3


def test_c_is_the_best_on_a_fifth_and_all_is_fitted_then(described, monkeypatch):
    some = np.concatenate([np.flatnonzero(described.labels == c)[:15] for c in range(10)])
    y = described.labels[some]
    x = described.features[some] + np.random.default_rng(3).normal(
        0, 0.2, (150, described.features.shape[1])
    )
    asked = []

    def spied(classifier, features, labels):
        asked.append((features, labels))
        return class_recalls(classifier, features, labels)

    monkeypatch.setattr(svm, "class_recalls", spied)
    cost, classifier = fit_svm(x, y, 5)
    held = (x[:, None] == asked[0][0][None]).all(axis=2).any(axis=1)
    assert np.bincount(y[held]).tolist() == [3] * 10
    assert len(asked) == len(svm.COSTS)
    assert all(np.array_equal(features, asked[0][0]) for features, _ in asked)
    scores = [
        LinearSVC(C=c, dual=False).fit(x[~held], y[~held]).score(x[held], y[held])
        for c in svm.COSTS
    ]
    assert cost == svm.COSTS[int(np.argmax(scores))]
    assert len(set(scores)) > 1
    np.testing.assert_allclose(classifier.coef_, LinearSVC(C=cost, dual=False).fit(x, y).coef_)
    # Of classes that any C tells apart, the smallest is taken; two images a class are enough.
    plain = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    cost, classifier = fit_svm(plain, np.array([4, 4, 7, 7, 9, 9]))
    assert cost == svm.COSTS[0]
    assert classifier.predict(plain).tolist() == [4, 4, 7, 7, 9, 9]


def test_recalls_are_of_each_class(described):
    classifier = fit_svm(
        np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]], np.array([4, 4, 7, 7, 9, 9])
    )[1]
    rows = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1]]
    found = class_recalls(classifier, rows, np.array([4, 4, 7, 7, 7]))
    np.testing.assert_allclose(found, [1, 2 / 3, np.nan])


def test_too_few_images_are_said(described):
    x, y = described.features, described.labels
    chosen = np.concatenate([np.flatnonzero(y != 3)[:200], np.flatnonzero(y == 3)[:5]])
    rows, few = x[chosen], y[chosen]
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(
        InputError, match=r"Class 'class 3' has 5 images; asked were 30 .* --train-images 4 or less"
    ):
        svm_recall(rows, few, 30, class_names=names)
    with pytest.raises(InputError, match=r"Class '3' has 5 images"):
        svm_recall(rows, few, 5)
    assert svm_recall(rows, few, 4, 10, 1).recalls.shape == (1, 10)
    with pytest.raises(
        InputError, match=r"Class 'class 3' has 0 images; .* others to test: give more images of it"
    ):
        svm_recall(rows[:200], few[:200], 2, class_names=names)
    for arguments, told in (
        ((1,), "train-images must be 2"),
        ((2, 0), "test-images must be 1"),
        ((2, 1, 0), "repeats"),
    ):
        with pytest.raises(InputError, match=told):
            svm_recall(x, y, *arguments)
    with pytest.raises(InputError, match="labels of 1"):
        svm_recall(x, np.zeros(len(y), np.int64), 2)
    for labels, told in (([0, 0], "1 classes"), ([0, 0, 1], "class 1 with one")):
        with pytest.raises(InputError, match=told):
            fit_svm(x[: len(labels)], np.array(labels))


# Neighbours


def page_rows(page: Path) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(query's name, [(name, class of its frame, cosine) of the closest]) of a page."""
    text = page.read_text(encoding="utf-8")
    rows = []
    for section in text.split('<section class="query">')[1:]:
        query, *closest = re.findall(r"<(?:figure|li[^>]*)><?.*?</figure>", section, re.DOTALL)
        names = [re.search(r'title="([^"]*)"', part)[1] for part in (query, *closest)]
        frames = [
            found[1] if (found := re.match(r'<li class="(\w+)"', part)) else "" for part in closest
        ]
        cosines = [re.search(r'class="cosine">([\d.-]+)<', part)[1] for part in closest]
        rows.append((names[0], list(zip(names[1:], frames, cosines, strict=True))))
    return rows


def test_the_page_finds_planted_copies(run, photos, command, tmp_path):
    planted = {
        "train/cat/000.jpg": "train/cat/twin.jpg",
        "train/cat/003.jpg": "val/dog/odd.jpg",
        "val/dog/002.jpg": "train/dog/two.jpg",
    }
    for one, other in planted.items():
        shutil.copy(photos / one, photos / other)
    arguments = [
        "--model",
        run.path,
        "--data",
        photos,
        "--scales",
        32,
        50,
        "--out",
        tmp_path / "f.npz",
    ]
    page, record = tmp_path / "n.html", tmp_path / "f.json"
    code, _, err = command(cli, "features", *arguments, "--neighbours", page, "--json", record)
    assert code == 0, err
    rows = dict(page_rows(page))
    assert len(rows) == 24  # of 27: twelve of each class
    pairs = planted | {other: one for one, other in planted.items()}
    assert len(pairs.keys() & rows.keys()) >= 4
    for name in pairs.keys() & rows.keys():
        frame = "alike" if Path(name).parent.name == Path(pairs[name]).parent.name else "unlike"
        assert rows[name][0] == (pairs[name], frame, "1.000")
    with np.load(tmp_path / "f.npz") as kept:
        cosines = kept["features"] @ kept["features"].T
        names, labels = kept["names"].tolist(), kept["labels"]
    for name, closest in rows.items():
        own = cosines[names.index(name)]
        shown = [names.index(near) for near, _, _ in closest]
        assert name not in {near for near, _, _ in closest}
        assert len(set(shown)) == 8
        assert own[shown].min() >= np.sort(np.delete(own, [*shown, names.index(name)]))[-1] - 1e-6
        assert [float(cosine) for *_, cosine in closest] == pytest.approx(own[shown], abs=6e-4)
        assert [frame == "alike" for _, frame, _ in closest] == (
            labels[shown] == labels[names.index(name)]
        ).tolist()
    # The headline is a count over all images.
    np.fill_diagonal(cosines, -1)
    right = int((labels[cosines.argmax(axis=1)] == labels).sum())
    share = json.loads(record.read_text())["neighbours"]
    assert (share["right"], share["images"]) == (right, 27)
    assert share["chance"] == pytest.approx((13 * 12 + 14 * 13) / (27 * 26))
    text = page.read_text(encoding="utf-8")
    assert f"{right} of 27" in text
    assert f"{100 * right / 27:.1f}%" in text
    assert "was trained on" not in text


def test_the_page_needs_no_script_and_no_request(run, photos, command, tmp_path):
    photos.rename(tmp_path / "<b>&")
    breaking = tmp_path / "<b>&" / "train" / "<script>alert('x')<"
    (tmp_path / "<b>&" / "train" / "cat").rename(breaking)
    shutil.rmtree(tmp_path / "<b>&" / "val")
    arguments = [
        "--model",
        run.path,
        "--data",
        tmp_path / "<b>&",
        "--out",
        "f.npz",
        "--neighbours",
        "n.html",
    ]
    code, _, err = command(cli, "features", *arguments)
    assert code == 0, err
    text = Path("n.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 16 * 9
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as picture:
        assert picture.size == (neighbours.THUMBNAIL, neighbours.THUMBNAIL)


def test_what_flatters_is_said(run, command, tmp_path):
    arguments = [
        "--model",
        run.path,
        "--data",
        "digits",
        "--out",
        tmp_path / "f.npz",
        "--svm",
        "--json",
        "f.json",
    ]
    code, out, err = command(
        cli, "features", *arguments, "--train-images", 10, "--neighbours", "n.html", "--scales", 32
    )
    assert code == 0, err
    assert "was trained on digits: it learnt these very classes, and has seen images" in out
    assert "which flatters its features" in Path("n.html").read_text(encoding="utf-8")
    svm = json.loads(Path("f.json").read_text())["svm"]
    assert len(svm["c"]) == len(svm["mean_class_recalls"]) == 3
    assert svm["mean"] == pytest.approx(np.mean(list(svm["recall"].values())))
    assert list(svm["recall"]) == [str(i) for i in range(10)]
    assert f"{100 * svm['mean']:.2f} ± {100 * svm['spread']:.2f}" in out
    code, out, _ = command(
        cli, "features", *arguments, "--train-images", 10, "--split", "validation", "--scales", 32
    )
    assert code == 0
    assert "learnt these very classes, which flatters" in " ".join(out.split())


@given(st.lists(st.integers(-1, 40), min_size=1, max_size=200), st.integers(1, 30))
def test_queries_are_spread_evenly_over_classes(labels, count):
    labels = np.array(labels)
    chosen = choose_queries(labels, count)
    assert len(set(chosen.tolist())) == len(chosen) <= count
    classes, each = np.unique(labels[chosen], return_counts=True)
    assert len(classes) == min(count, len(np.unique(labels)))
    asked = [count // len(classes), -(-count // len(classes))]
    assert all(n in asked or n == (labels == c).sum() for c, n in zip(classes, each, strict=True))


def test_nearest_is_what_sorting_gives_however_it_is_cut(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[7] = x[31] = x[50]  # equal ones come in order
    cosines = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    for block in (1, 150, 1 << 20):
        monkeypatch.setattr(neighbours, "BLOCK", block)
        for count in (1, 4):
            places, found = nearest(x, np.arange(60), count)
            np.testing.assert_allclose(found, -np.sort(-cosines, axis=1)[:, :count], atol=1e-6)
            assert (places != np.arange(60)[:, None]).all()
            np.testing.assert_allclose(
                np.take_along_axis(cosines, places, axis=1), found, atol=1e-6
            )


# Bad input


def test_bad_input_is_said(run, predictor, photos, command, tmp_path):
    def error(*arguments) -> str:
        given = {"--model": run.path, "--data": photos, "--out": "f.npz", "--scales": 40}
        given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
        flat = [
            part
            for flag, value in given.items()
            for part in ([flag] if value is None else [flag, value])
        ]
        code, out, err = command(cli, "features", *flat)
        assert code == 2, out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(os.listdir()) == before
        return err

    (tmp_path / "m.keras").write_bytes(b"model")
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir())
    assert "invalid choice 'max' for argument '--aggregate'" in error("--aggregate", "max")
    assert "Scale 31 is below the model's input of 32 px" in error("--scales", 31)
    assert "ends in .npz or .parquet; received '.csv'" in error("--out", "f.csv")
    assert "m.keras is a model's name" in error("--out", "m.keras")
    assert "m.keras is a model's name" in error("--neighbours", "m.keras")
    assert "ends in .html; received '.htm'" in error("--neighbours", "n.htm")
    assert "m.keras is a model's name" in error("--json", "m.keras")
    assert "has no split 'test'" in error("--split", "test")
    assert "Class 'cat' has 12 images; asked were 30 for training" in error("--svm", None)
    assert "Class 'cat' has 4 images" in error("--svm", None, "--split", "val", "--train-images", 9)
    assert "empty has no images" in error("--data", "empty")
    assert "No model at nowhere" in error("--model", "nowhere")
    (photos / "val" / "dog" / "001.jpg").write_bytes(
        (photos / "val" / "dog" / "001.jpg").read_bytes()[:300]
    )
    assert "001.jpg cannot be read" in error()
    assert (tmp_path / "m.keras").read_bytes() == b"model"
    with pytest.raises(InputError, match="put it into a list"):
        vggkeras.extract_features(predictor, "a.jpg")
    with pytest.raises(InputError, match=r"No image at a\.jpg"):
        vggkeras.extract_features(predictor, ["a.jpg"])
    with pytest.raises(InputError, match="uint8"):
        vggkeras.extract_features(predictor, [photo(0) / 255])
    with pytest.raises(InputError, match="each counts once"):
        vggkeras.extract_features(predictor, [photo(0)], (40, 40))
    with pytest.raises(InputError, match="has no form that gives features"):
        vggkeras.extract_features(replace(predictor, make_form=None), [photo(0)])
    with pytest.raises(InputError, match="image files have 3"):
        vggkeras.extract_features(replace(predictor, input_shape=(32, 32, 4)), [photo(0)])


def test_one_image_has_no_neighbours(run, command, tmp_path):
    write_photos(tmp_path / "one", 1)
    arguments = [
        "--model",
        run.path,
        "--data",
        tmp_path / "one",
        "--out",
        "f.npz",
        "--neighbours",
        "n.html",
    ]
    code, _, err = command(cli, "features", *arguments)
    assert code == 2
    assert "nearest neighbours need two or more" in err
    assert not Path("n.html").exists()


def test_the_packages_name_is_the_function(predictor):
    assert vggkeras.extract_features is extraction.extract_features
    assert callable(vggkeras.train)
    with pytest.raises(AttributeError):
        _ = vggkeras.neighbours
