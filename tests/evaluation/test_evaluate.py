"""Rows of an evaluation, and the command that shows and writes them."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import bare_run, edit_member, photo, write_photos
from PIL import Image

import vggkeras
from vggkeras import files
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation import scoring
from vggkeras.models import save_model
from vggkeras.runtimes.predictor import Predictor

pytestmark = pytest.mark.integration

NAMES = [str(i) for i in range(10)]


def split_of(images, labels) -> Split:
    paths = [str(Path(f"{i}.png").absolute()) for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    return Split("made", len(images), np.array(labels, np.int64), paths)


def test_rows_are_counts_of_posteriors(predictors, photographs):
    labels = np.arange(10)
    split = split_of(photographs, labels)
    models = [predictors["model.keras"], predictors["model.onnx"]]
    rows = scoring.evaluate(models, split, NAMES, ["center", "both"], (32, 75), fuse=True)
    assert len(rows) == 3 * 2 * 3  # two models and their fusion, two protocols, each scale and both
    assert [row.scales for row in rows[:3]] == [(32,), (75,), (32, 75)]
    row = next(row for row in rows if row.protocol == "both" and row.scales == (32, 75))
    p = vggkeras.posteriors(models[0], photographs, "both", (32, 75))
    best = np.argsort(-p, axis=1)
    assert row.predictions.tolist() == best[:, 0].tolist()
    assert row.correct == sum(best[:, 0] == labels)
    assert row.correct5 == sum(
        label in order[:5] for label, order in zip(labels, best, strict=True)
    )
    np.testing.assert_allclose(row.confidences, p.max(axis=1), atol=1e-6)
    assert rows[-1].models == tuple(str(model.path) for model in models)
    assert rows[-1].predictions.tolist() == row.predictions.tolist()
    matrix = row.confusion_matrix()
    assert matrix.sum() == 10
    for i, recall in enumerate(row.recalls()):
        assert recall == np.mean(row.predictions[labels == i] == i)


def test_memory_does_not_grow_with_the_images(photographs):
    """A model that costs nothing, so that what the evaluation itself holds is seen."""
    image = photographs[-1]
    free = Predictor(
        path=Path("free"),
        runtime="none",
        version="",
        provider="cpu",
        input_shape=(32, 32, 3),
        outputs=2,
        input_name="images",
        output_name="probabilities",
        card=ModelCard(("a", "b")),
        run=lambda x: np.ones((len(x), 2), np.float32),
    )
    one = split_of([image], [0])

    def peak(count: int) -> int:
        split = Split("many", count, np.zeros(count, np.int64), [*one.sources] * count)
        tracemalloc.start()
        (row,) = scoring.evaluate(free, split, ["a", "b"], "multicrop", (100,))
        assert row.images == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # 25 crops and their mirrors an image. A window and what is decoded ahead of it are held, some
    # 50 images; how many at the peak depends on threads.
    assert peak(800) < 800 * 50 * 32 * 32 * 3 / 2


# Statistics
@pytest.mark.slow
def test_the_command_shows_and_writes_the_rows(run, dense_exports, digits, command, tmp_path):
    models = [run.path, dense_exports / "model.dense.onnx"]
    protocols = ["center", "dense", "multicrop"]
    arguments = [
        "--protocol",
        *protocols,
        "--scales",
        "40",
        "--fuse",
        "--json",
        tmp_path / "e.json",
    ]
    code, out, err = command(cli, "evaluate", "--model", *models, "--data", digits, *arguments)
    assert code == 0, err
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [row["protocol"] for row in rows] == 3 * protocols  # of each model, and fused
    assert "cost of dense : multicrop" in out
    for path, runtime in zip(models, ("keras", "onnxruntime"), strict=True):
        assert f"{path}" in " ".join(out.split())
        assert f"in {runtime} " in " ".join(out.split())
    assert "dense" in out
    for number, row in enumerate(rows):
        assert row["images"] == 60
        assert row["top1_error_interval"][0] <= row["top1_error"] <= row["top1_error_interval"][1]
        assert sum(count for *_, count in row["confusions"]) == 60
        assert sum(count for a, b, count in row["confusions"] if a == b) == row["correct"]
        assert [pair["row"] for pair in row["against"]] == list(range(number))
        for pair in row["against"]:
            assert (
                len(pair["gained"]) - len(pair["lost"])
                == row["correct"] - rows[pair["row"]]["correct"]
            )
    # Keras and ONNX Runtime answer alike: no image flips between them.
    for keras, onnx in zip(rows[:3], rows[3:6], strict=True):
        assert (keras["correct"], keras["correct5"]) == (onnx["correct"], onnx["correct5"])
    flipped = {
        name for row in rows for pair in row["against"] for name in pair["gained"] + pair["lost"]
    }
    assert flipped
    assert all(Path(name).parent.parent == digits / "val" for name in flipped)


def test_digits_are_never_mirrored_and_photographs_are(dense_exports, command, tmp_path, photos):
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4, seed=1)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    differ = []
    for path, data in ((dense_exports / "model.onnx", "digits"), (tmp_path / "m.keras", photos)):
        errors = []
        for mirrors in ("--mirrors", "--no-mirrors"):
            arguments = [
                "--data",
                data,
                "--protocol",
                "dense",
                "--json",
                tmp_path / "e.json",
                mirrors,
            ]
            assert command(cli, "evaluate", "--model", path, *arguments)[0] == 0
            errors.append(json.loads((tmp_path / "e.json").read_text())[0]["calibration_error"])
        differ.append(errors[0] != errors[1])
    assert differ == [False, True]


def test_bad_input_is_an_error(predictors, photographs):
    keras, onnx = predictors["model.keras"], predictors["model.onnx"]
    split = split_of(photographs[:4], [0, 1, 10, 3])
    with pytest.raises(
        InputError, match=r"2\.png is labeled 10, and the model's 10 classes are 0 to 9"
    ):
        scoring.evaluate(keras, split, NAMES)
    with pytest.raises(InputError, match="made has no images"):
        scoring.evaluate(keras, split_of([], []), NAMES)
    other = replace(onnx, card=replace(onnx.card, class_names=(*NAMES[:9], "x")))
    with pytest.raises(InputError, match="name class 9 differently"):
        scoring.evaluate([keras, other], split.without([2]), NAMES, fuse=True)
    with pytest.raises(InputError, match="two models or more"):
        scoring.evaluate(keras, split, NAMES, fuse=True)
    with pytest.raises(InputError, match="Unknown protocol 'x'"):
        scoring.evaluate(keras, split, NAMES, "x")
    with pytest.raises(InputError, match="Protocols must differ"):
        scoring.evaluate(keras, split, NAMES, ["center", "center"])


def test_unreadable_images_are_counted_and_named_or_left_out(predictors, photographs):
    split = split_of(photographs[:6], range(6))
    for i in (1, 4):
        Path(f"{i}.png").write_bytes(Path(f"{i}.png").read_bytes()[:-60])
    with pytest.raises(
        InputError, match=r"1\.png, \S*4\.png cannot be read as .* \(2 of the 6 of made\): replace"
    ):
        scoring.evaluate(predictors["model.onnx"], split, NAMES)
    skipped: list[str] = []
    (row,) = scoring.evaluate(predictors["model.onnx"], split, NAMES, skipped=skipped)
    assert row.indices.tolist() == row.labels.tolist() == [0, 2, 3, 5]
    assert [Path(name).name for name in skipped] == ["1.png", "4.png"]


def test_files_that_are_no_images_and_those_cut_short_are_counted_together(
    command, tmp_path, photos
):
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    cut = photos / "val" / "cat" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (photos / "val" / "cat" / "002.jpg").write_text("no image")
    (photos / "val" / "dog" / "link.jpg").symlink_to("nothing")
    (photos / "val" / "dog" / "folder.jpg").mkdir()
    arguments = ["evaluate", "--model", tmp_path / "m.keras", "--data", photos]
    code, _, err = command(cli, *arguments)
    assert code == 2
    message = " ".join(err.split())
    assert all(name in message for name in ("001.jpg", "002.jpg", "link.jpg", "folder.jpg"))
    assert f"(4 of {photos})" in message
    code, out, _ = command(cli, *arguments, "--skip-unreadable")
    assert code == 0
    assert "skipped 4 unreadable images" in out


@pytest.mark.parametrize("path", ["folder", ".", "file/e.json"])
def test_a_bad_path_for_json_is_an_error_before_any_work(path, exports, command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept.txt").write_text("important")
    (tmp_path / "file").write_text("")
    model = exports / "model.tflite"
    code, out, err = command(cli, "evaluate", "--model", model, "--data", "digits", "--json", path)
    assert (code, out) == (2, "")
    assert "folder" in err
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "folder", "lost")
    assert (tmp_path / "folder" / "kept.txt").read_text() == "important"


def test_a_file_without_its_dense_form_says_how_to_get_it(dense_exports, tmp_path, command):
    for name in ("model.onnx", "model.tflite"):
        shutil.copy(dense_exports / name, tmp_path)
        arguments = [
            "evaluate",
            "--model",
            tmp_path / name,
            "--data",
            "digits",
            "--protocol",
            "dense",
        ]
        code, _, err = command(cli, *arguments)
        assert code == 2
        assert f"python -m export --dense --format {name.split('.')[1]}" in " ".join(err.split())
    # The form of another model beside it is refused.
    dense = Path(shutil.copy(dense_exports / "model.dense.onnx", tmp_path))
    sha256 = vggkeras.load(dense).card.model_sha256.encode()
    edit_member(dense, "vggkeras.json", lambda text: text.replace(sha256, b"0" * 64))
    changed = vggkeras.load(tmp_path / "model.onnx", verify=False)
    with pytest.raises(InputError, match="but of another model"):
        vggkeras.posteriors(changed, [photo(0)], "dense")


@pytest.fixture
def animals(tmp_path):
    """A folder of two class folders alone, with 20 and 10 photographs, and a network for them."""
    for c, (name, count) in enumerate((("cat", 20), ("dog", 10))):
        write_photos(tmp_path / "animals" / name, count, 100 * c)
    return tmp_path / "animals", bare_run(tmp_path / "run", ["cat", "dog"], "elsewhere")


def images_of(command, folder, run, *flags) -> tuple[str, int]:
    """Return the split and the number of images that evaluate says that it scored."""
    code, _, err = command(
        cli, "evaluate", "--model", run, "--data", folder, "--json", "e.json", *flags
    )
    assert code == 0, err
    row = json.loads(Path("e.json").read_text())[0]
    return row["split"], row["images"]


def test_what_is_there_is_scored(animals, command):
    folder, run = animals
    assert images_of(command, folder, run) == ("all", 30)
    held_out = images_of(command, folder, run, "--split", "val")[1]
    rest = images_of(command, folder, run, "--split", "train")[1]
    assert 0 < held_out < rest
    assert held_out + rest == 30
    assert images_of(command, folder, run, "--split", "train", "val") == ("train+val", 30)
    assert images_of(command, folder, run, "--split", "train+val") == ("train+val", 30)
    assert images_of(command, folder, run, "--images", "6") == ("all", 6)
    (folder.parent / "parent").mkdir()
    folder.rename(folder.parent / "parent" / "test")
    assert images_of(command, folder.parent / "parent", run) == ("test", 30)


def test_of_its_own_data_a_model_is_scored_on_what_training_held_out(animals, command):
    folder, _ = animals
    own = bare_run(folder.parent / "own", ["cat", "dog"], str(folder))
    split, count = images_of(command, folder, own)
    assert split == "validation"
    assert count == vggkeras.load_data(str(folder)).split("validation").count < 30
    assert images_of(command, folder, own, "--split", "all") == ("all", 30)


def test_what_is_wrong_with_the_data_is_told_before_a_model_is_loaded(command, tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"no model")
    for flags, message in (
        (("--data", "nowhere"), "there is nothing of that name here"),
        (("--data", "digits", "--split", "test"), "no split 'test'"),
        (("--data", "digits", "--images", "-1"), "--images must be 1 or more"),
    ):
        code, _, err = command(cli, "evaluate", "--model", tmp_path / "broken.keras", *flags)
        assert (code, message in " ".join(err.split())) == (2, True)
