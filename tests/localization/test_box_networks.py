"""Networks of boxes: their last layer, their dense form, and the card that travels with them."""

import numpy as np
import pytest

import vggkeras
from vggkeras import models
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.keras import keras_predictor
from vggkeras.runtimes.predictor import check_probabilities

SMALL = {"width": 1 / 64, "fc_units": 8, "seed": 0}


@pytest.mark.parametrize(("boxes", "outputs"), [("scr", 4), ("pcr", 12)])
def test_the_last_layer_gives_boxes(boxes, outputs):
    model = vggkeras.build("A", (32, 32, 3), 3, boxes=boxes, **SMALL)
    last = model.layers[-1]
    assert (last.name, last.units, last.dtype) == ("boxes", outputs, "float32")
    assert last.activation.__name__ == "linear"
    assert "predictions" not in {layer.name for layer in model.layers}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    dense = vggkeras.to_dense(model)
    assert dense(images).shape == (2, 2, 3, outputs)
    crop = images[:, :32, :32]
    assert np.allclose(np.asarray(dense(crop))[:, 0, 0], np.asarray(model(crop)), atol=1e-5)


def test_what_is_no_kind_of_boxes_is_refused():
    with pytest.raises(InputError, match="boxes must be one of scr, pcr; received 'both'"):
        vggkeras.build("A", (32, 32, 3), 3, boxes="both", **SMALL)
    model = vggkeras.build("A", (32, 32, 3), 3, boxes="scr", **SMALL)
    with pytest.raises(InputError, match="a network of boxes"):
        models.dense_classifier(model)


def test_the_card_says_that_a_file_gives_boxes(tmp_path):
    model = vggkeras.build("A", (32, 32, 3), 3, boxes="pcr", **SMALL)
    card = ModelCard(("a", "b", "c"), boxes="pcr", image_size=32, scale=37)
    models.save_model(model, tmp_path / "model.keras", card)
    predictor = vggkeras.load(tmp_path / "model.keras")
    assert (predictor.form, predictor.boxes, predictor.outputs) == (Form.BOXES, "pcr", 12)
    assert (predictor.output_name, predictor.class_names) == ("boxes", ["a", "b", "c"])
    dense = predictor.dense_form()
    assert (dense.form, dense.boxes) == (Form.DENSE_BOXES, "pcr")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert np.allclose(dense(images)[:, 0, 0], predictor(images), atol=1e-5)
    assert dense(np.repeat(images, 2, axis=1)).shape == (1, 2, 1, 12)
    with pytest.raises(InputError, match="gives boxes, not probabilities"):
        check_probabilities(predictor)
    assert keras_predictor(model, ModelCard(boxes="pcr")).class_names == ["0", "1", "2"]


@pytest.mark.parametrize("form", [Form.BOXES, Form.DENSE_BOXES])
def test_a_description_of_boxes_is_read_back(form):
    card = ModelCard(
        ("a", "b"),
        mean_rgb=(1.0, 2.0, 3.0),
        boxes="pcr",
        scale=37,
        form=form,
        input_shape=(32, 32, 3),
        outputs=8,
        model_sha256="0",
        written_with="1",
    )
    described = card.to_description()
    assert described["output"]["name"] == "boxes"
    assert ModelCard.from_json(described, "here") == card
    with pytest.raises(InputError, match="damaged"):
        ModelCard.from_json({**described, "boxes": None}, "here")
    with pytest.raises(InputError, match="damaged"):
        ModelCard.from_json({**described, "boxes": "scr"}, "here")
