"""Hugging Face datasets, of local Parquet files as the hub stores them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from helpers import encoded, photo, tiny
from PIL import Image

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.data.splits import Stored
from vggkeras.errors import InputError
from vggkeras.training.train import train

datasets = pytest.importorskip(
    "datasets", reason="Hugging Face datasets is not installed: pip install 'vggkeras[hf]'"
)


def made(count: int, seed: int, labels=None):
    images = [encoded(Image.fromarray(photo(seed + i)), "PNG") for i in range(count)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {
        "image": [{"bytes": content, "path": None} for content in images],
        "label": labels or [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub") / "set"
    (root / "data").mkdir(parents=True)
    made(40, 0).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    made(12, 100).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_a_data_set_has_its_splits_classes_and_images(folder):
    data = vggkeras.load_data(f"hf:{folder}")
    assert data.class_names == ["no", "yes"]
    assert data.validation == "held out: 0.2 of the images, by a hash of their number"
    assert data.split("test").count == 12
    train_, held = data.split("train"), data.split("validation")
    assert train_.count + held.count == 40
    assert 3 <= held.count <= 14
    expected = {encoded(Image.fromarray(photo(i)), "PNG"): i % 2 for i in range(40)}
    found = {content: label for s in (train_, held) for _, content, label in s.examples()}
    assert found == expected
    both = data.split("train+val")
    assert [label for _, _, label in both.examples()] == [*train_.labels, *held.labels]
    assert isinstance(both.sources, Stored)
    whole = vggkeras.load_data(f"hf:{folder}", whole=True)
    assert {name: split.count for name, split in whole.splits.items()} == {"train": 40, "test": 12}
    assert len(whole.split("train").sources[5:9]) == 4


@pytest.mark.slow
def test_training_and_scoring_on_it(folder, tmp_path, command):
    plain = {"batch_norm": False, "epochs": 1}
    run = train(tiny(tmp_path / "run", data=f"hf:{folder}", scale="36:44", **plain))
    figures = tmp_path / "figures.json"
    arguments = ["--model", run.path, "--data", f"hf:{folder}", "--json", figures]
    code, _, err = command(cli, "evaluate", *arguments, "--split", "validation")
    assert code == 0, err
    (row,) = json.loads(figures.read_text())
    assert row["correct"] / row["images"] == pytest.approx(
        run.record.metrics["val_accuracy"], abs=1e-6
    )
    assert np.isfinite(run.model.get_weights()[0]).all()


def test_a_contests_test_split_without_labels_is_left_out(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    made(30, 0).to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    made(6, 50, [-1] * 6).to_parquet(tmp_path / "set" / "data" / "test-0.parquet")
    assert "test" not in vggkeras.load_data(f"hf:{tmp_path / 'set'}").splits


def test_a_models_file_makes_nobody_ask_the_hub(folder, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)  # would be called
    for spec in ("hf:somebody/set", "hf:somebody/set:config", "hf:mnist"):
        with pytest.raises(InputError, match="nothing is downloaded because a model"):
            vggkeras.load_data(spec, fetch=False)
    for spec in ("hf:pandas", "hf:json", "hf:hf://buckets/x", "hf:buckets/a/b/c", "hf:", "hf:../x"):
        with pytest.raises(InputError, match="expected hf:NAME"):
            vggkeras.load_data(spec)


def test_a_local_folder_is_found_again_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    data = vggkeras.load_data(f"hf:{folder.name}", fetch=False)
    assert data.spec == f"hf:{folder.resolve()}"


def test_splits_called_valid_are_validation(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    made(30, 0).to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    made(8, 50).to_parquet(tmp_path / "set" / "data" / "valid-0.parquet")
    for whole in (True, False):
        data = vggkeras.load_data(f"hf:{tmp_path / 'set'}", whole=whole)
        assert data.split("valid").count == 8
        assert data.default_split == "validation"


def test_labels_that_are_no_classes_are_refused(tmp_path):
    for name, labels in (("floats", [0.5, 1.5] * 5), ("lists", [[1], [0, 1]] * 5)):
        (tmp_path / name / "data").mkdir(parents=True)
        rows = made(10, 0).remove_columns("label").add_column("label", labels)
        rows.to_parquet(tmp_path / name / "data" / "train-0.parquet")
        with pytest.raises(InputError, match="is not for classification"):
            vggkeras.load_data(f"hf:{tmp_path / name}")


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, monkeypatch):
    # The library's own switch: nobody waits for a network, there or not.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec in (f"hf:{tmp_path}", "hf:no/set.of.that.name"):
        with pytest.raises(InputError, match=r"^Unknown data .hf:") as error:
            vggkeras.load_data(spec)
        assert "\n" not in str(error.value)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(InputError, match="is not for classification"):
        vggkeras.load_data(f"hf:{tmp_path / 'text'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install .vggkeras\[hf\]"):
        vggkeras.load_data("hf:x")
