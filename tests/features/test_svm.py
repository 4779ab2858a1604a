"""Caltech-101's protocol: what is drawn, which images choose C, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from vggkeras import files
from vggkeras.__main__ import cli
from vggkeras.commands import features
from vggkeras.errors import InputError
from vggkeras.features import extraction, neighbours, svm
from vggkeras.features.extraction import load_images
from vggkeras.features.svm import SvmRecall, class_recalls, fit_svm, svm_recall

pytestmark = pytest.mark.integration


def test_an_svm_on_features_is_far_better_than_chance_and_repeatable(described):
    result, again, other = (
        svm_recall(described.features, described.labels, 20, 40, 3, seed) for seed in (0, 0, 1)
    )
    assert result.recalls.shape == (3, 10)
    assert result.mean > 0.85
    np.testing.assert_array_equal(result.recalls, again.recalls)
    assert result.costs == again.costs
    assert not np.array_equal(result.recalls, other.recalls)
    low, high = result.interval
    assert low <= result.mean <= high
    assert result.spread == pytest.approx(np.std(result.means, ddof=1))
    assert (
        high - result.mean == pytest.approx(4.302653 * result.spread / 3**0.5, rel=1e-5)
        or high == 1
    )
    alone = SvmRecall(result.labels, result.costs[:1], result.recalls[:1])
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


def test_c_is_the_best_on_a_fifth_and_all_is_fitted_then(described):
    some = np.concatenate([np.flatnonzero(described.labels == c)[:15] for c in range(10)])
    y = described.labels[some]
    x = described.features[some] + np.random.default_rng(3).normal(
        0, 0.2, (150, described.features.shape[1])
    )
    fitted, held = svm.held_out(y, 5)
    assert np.bincount(y[held]).tolist() == [3] * 10
    assert sorted([*fitted, *held]) == list(range(150))
    assert not np.array_equal(held, svm.held_out(y, 6)[1])
    scores = [
        LinearSVC(C=c, dual=False).fit(x[fitted], y[fitted]).score(x[held], y[held])
        for c in svm.COSTS
    ]
    cost, classifier = fit_svm(x, y, 5)
    assert cost == svm.COSTS[int(np.argmax(scores))]
    assert len(set(scores)) > 1
    np.testing.assert_allclose(classifier.coef_, LinearSVC(C=cost, dual=False).fit(x, y).coef_)
    # Of classes that any C tells apart, the smallest is taken; two images a class are enough.
    plain = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    cost, classifier = fit_svm(plain, np.array([4, 4, 7, 7, 9, 9]))
    assert cost == svm.COSTS[0]
    assert classifier.predict(plain).tolist() == [4, 4, 7, 7, 9, 9]


def test_recalls_are_of_each_class():
    classifier = fit_svm(
        np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]], np.array([4, 4, 7, 7, 9, 9])
    )[1]
    rows = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1]]
    recalls = class_recalls(classifier, rows, np.array([4, 4, 7, 7, 7]))
    np.testing.assert_allclose(recalls, [1, 2 / 3, np.nan])


def test_too_few_images_are_refused(described):
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
    for arguments, message in (
        ((1,), "train-images must be 2"),
        ((2, 0), "test-images must be 1"),
        ((2, 1, 0), "repeats"),
    ):
        with pytest.raises(InputError, match=message):
            svm_recall(x, y, *arguments)
    with pytest.raises(InputError, match="labels of 1"):
        svm_recall(x, np.zeros(len(y), np.int64), 2)
    for labels, message in (([0, 0], "1 classes"), ([0, 0, 1], "class 1 with one")):
        with pytest.raises(InputError, match=message):
            fit_svm(x[: len(labels)], np.array(labels))


def test_images_without_labels_are_refused(photos):
    data = load_images(str(photos / "train" / "cat"))
    with pytest.raises(InputError, match="labels of 0: give images in class folders"):
        svm.check_split(data, (), 2, 1, 1, 0)


def test_the_command_prints_and_keeps_what_was_measured(run, command):
    arguments = ["--model", run.path, "--data", "digits", "--split", "validation", "--scales", 32]
    arguments += ["--out", "f.npz", "--svm", "--train-images", 10, "--neighbours", "n.html"]
    code, out, err = command(cli, "features", *arguments, "--json", "f.json")
    assert code == 0, err
    assert "it learned these very classes, which flatters its features" in " ".join(out.split())
    assert "which flatters its features" in Path("n.html").read_text(encoding="utf-8")
    extraction.check_out(Path("f.npz"))  # all of them may be overwritten by the same command
    neighbours.check_page(Path("n.html"))
    files.check_file(Path("f.json"), features.FIGURES)
    record = json.loads(Path("f.json").read_text())["svm"]
    assert len(record["c"]) == len(record["mean_class_recalls"]) == 3
    assert record["mean"] == pytest.approx(np.mean(list(record["recall"].values())))
    assert list(record["recall"]) == [str(i) for i in range(10)]
    assert f"{100 * record['mean']:.2f} ± {100 * record['spread']:.2f}" in out
