"""The card is what its types say, or one error: whatever JSON a file holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vggkeras.card import Calibration, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.processor import Processor
from vggkeras.recipe import Recipe
from vggkeras.training.record import RunRecord

TRAINED = ModelCard(
    class_names=("cat", "dog"),
    mean_rgb=(1.0, 2.5, 3.0),
    image_size=32,
    scale=37,
    arch="A",
    recipe=Recipe("A", image_size=32, scale="32:64"),
    data="digits",
    seed=0,
    epoch=3,
    images={"train": 6, "validation": 2},
    skipped=("a.jpg",),
    versions={"keras": "3"},
    initialized={"block1_conv1": "keras:vgg16", "predictions": None},
    pretrained="keras:vgg16",
    rgb_covariance=((1.0, 0.0), (0.0, 1.0)),
    unreadable={"train": (4,), "validation": ()},
    smallest_sides={"32": 8},
)
EXPORTED = ModelCard(
    class_names=("cat", "dog"),
    mean_rgb=(1.0, 2.5, 3.0),
    scale=37,
    arch="A",
    recipe=TRAINED.recipe,
    data="digits",
    seed=0,
    epoch=3,
    images={"train": 6},
    versions={"keras": "3"},
    form=Form.DENSE,
    precision="int8",
    input_shape=(32, 32, 3),
    outputs=2,
    tolerance=0.5,
    model_sha256="0" * 64,
    written_with="0.2.0",
    processor=Processor("CPU", "x86_64", ("AVX2",)),
    calibration=Calibration(6, 2, "digits train"),
    left_in_float=("predictions",),
    signal_to_noise_db={"block1_conv1": 40.25},
    exif=True,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
) | st.sampled_from([10**400, -1, 0, "\0", "\ud800", [[[]]], {"": {}}])


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Return where a value lies in nested JSON, for all of them; () is all of it."""
    inner: Any = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [path, *(p for key, v in inner for p in paths(v, (*path, key)))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def card_or_none(read: Callable[[Any, str], ModelCard], value: Any) -> ModelCard | None:
    """Read a card; None where that is refused, in a short message that names the file."""
    try:
        return read(value, "file")
    except InputError as error:
        message = str(error)
    assert message.startswith("file: its description is damaged (")
    assert len(message) < 400
    return None


WRITTEN: dict[str, Callable[[], Any]] = {
    "a .keras file": TRAINED.to_json,
    "an exported file": EXPORTED.to_description,
}


@pytest.mark.parametrize("where", WRITTEN)
def test_what_is_written_is_read_unchanged(where):
    card = {"a .keras file": TRAINED, "an exported file": EXPORTED}[where]
    text = json.dumps(WRITTEN[where]())
    assert ModelCard.from_text(text, "file") == card
    newer = {**json.loads(text), "of a newer version": [1]}
    assert ModelCard.from_json(newer, "file") == card


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_any_json_in_any_field_is_a_card_or_one_error(data):
    written = json.loads(json.dumps(WRITTEN[data.draw(st.sampled_from(list(WRITTEN)))]()))
    changed = replaced(written, data.draw(st.sampled_from(paths(written))), data.draw(JSON))
    if card := card_or_none(ModelCard.from_json, changed):
        described = card.to_description() if card.input_shape else card.to_json()
        again = ModelCard.from_text(json.dumps(described), "file")
        assert (again.to_description() if again.input_shape else again.to_json()) == described


@given(st.binary() | st.text())
@example("[" * 100_000)
@example('{"seed": ' + "9" * 5000 + "}")
@example('{"mean_rgb": [NaN, 1e999, 2]}')
@example('"provenance"')
def test_any_text_is_a_card_or_one_error(text):
    assert card_or_none(ModelCard.from_text, text) in (None, ModelCard())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_names", 3, "class_names: expected a list, received 3"),
        ("class_names", [1, 2], "class_names[0]: expected a text, received 1"),
        ("scale", "37", "scale: expected a whole number of 64 bits, received '37'"),
        ("scale", -1, "scale: expected 1 to 65535, received -1"),
        ("mean_rgb", [1, float("nan"), 2], "mean_rgb[1]: expected a finite number, received nan"),
        ("images", {"train": True}, "images.train: expected a whole number"),
        ("recipe", {"epochs": 1.5}, "recipe.epochs: expected a whole number"),
        ("recipe", {"arch": "F"}, "Unknown configuration 'F'"),
        ("smallest_sides", {"x": 1}, "smallest_sides: expected numbers of pixels"),
    ],
)
def test_a_field_of_another_type_is_named(field, value, message):
    with pytest.raises(InputError, match="its description is damaged") as caught:
        ModelCard.from_json({**TRAINED.to_json(), field: value}, "file")
    assert message in str(caught.value)


def test_fields_that_contradict_each_other_are_refused():
    three = {**EXPORTED.to_description(), "class_names": ["a", "b", "c"]}
    with pytest.raises(InputError, match="it names 3 classes, and has 2 outputs"):
        ModelCard.from_json(three, "file")
    features = dataclasses.replace(EXPORTED, form=Form.FEATURES, outputs=64)
    assert ModelCard.from_json(features.to_description(), "file") == features


@pytest.mark.parametrize(
    "damage",
    [{"epochs_trained": "3"}, {"metrics": [1]}, {"status": None}, {"seconds": {}}, {"process": ""}],
)
def test_a_run_record_of_other_types_is_one_error(damage, tmp_path):
    record = RunRecord(TRAINED, "done", 3, 4, {"val_accuracy": 0.5}, 1.5, "host", 7)
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    (tmp_path / "run.json").write_text(json.dumps({**record.to_json(), **damage}))
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        RunRecord.read(tmp_path)
