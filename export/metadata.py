"""TFLite's standard metadata, by which phones' tools find a .tflite file's labels."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers

from vggkeras.card import BOXES_USE, FEATURES_USE, INPUT_NAME, ModelCard

LABELS = "labels.txt"


def append_labels(path: Path, card: ModelCard) -> None:
    """Add the labels and the description to a .tflite file: TFLite's associated files.

    They are a zip archive at its end.
    """
    with zipfile.ZipFile(path, "a") as archive:
        # Without a date, so that the same network gives the same bytes.
        if card.class_names:  # features have none
            archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(card.class_names) + "\n")
        archive.writestr(zipfile.ZipInfo("vggkeras.json"), json.dumps(card.to_description()))


def model_metadata(card: ModelCard) -> bytes:
    """Return the ModelMetadata, a flatbuffer of TFLite's metadata_schema.fbs.

    MediaPipe and ML Kit read it. It has no process units: the image goes in as bytes (for NPUs,
    minus 128), and the answers come out as they are. For a classifier it names the file in the zip
    archive at the end whose lines are the labels.
    """
    assert card.input_shape is not None
    h, w, c = card.input_shape
    uint8, uint32 = "Uint8", "Uint32"
    color = {1: 2, 3: 1}.get(c, 0)  # ColorSpaceType: RGB 1, GRAYSCALE 2
    size = {0: (uint32, w), 1: (uint32, h)}
    content = {0: (uint8, 2), 1: {0: (uint8, color), 1: size}}  # ContentProperties.ImageProperties
    file = {0: LABELS, 1: "A line a class.", 2: (uint8, 2)}  # AssociatedFileType.TENSOR_AXIS_LABELS
    pixel = "int8, 0-255 minus 128" if card.types[0] == "int8" else "uint8, 0-255"
    image = {0: INPUT_NAME, 1: f"{pixel}, {card.resize}", 3: content}
    output: dict[int, Any] = {0: card.form.output_name}
    if card.form.is_boxes:
        output[1] = f"float32. {BOXES_USE}"
        what = f"Boxes, {card.outputs // 4} an image or a place of it, of a network"
    elif classes := len(card.class_names):
        output |= {1: f"Probability of each class, {card.types[1]}, 0-1.", 6: [file]}
        what = f"Image classifier of {classes} classes"
    else:
        output[1] = f"float32, 0 or more. {FEATURES_USE}"
        what = f"Very deep features, {card.outputs} an image, of a network"
    model = {
        0: f"VGG {card.arch}",
        1: f"{what}, trained on {card.data or 'unnamed data'}.",
        2: card.model_sha256[:12],
        3: [{2: [image], 3: [output]}],
        7: "1.0.0",  # min_parser_version: the first, which knew every field here
    }
    builder = flatbuffers.Builder()
    builder.Finish(_put(builder, model), b"M001")
    return bytes(builder.Output())


def _put(builder: Any, value: str | list[Any] | dict[int, Any]) -> int:
    """Write a string, a list of tables or a table, and return its offset.

    A table's keys are the fields' numbers in the schema, and its scalars are (type, value).
    """
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        offsets = [_put(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    # What a table points to is written before it.
    written = {
        key: _put(builder, item) for key, item in value.items() if not isinstance(item, tuple)
    }
    builder.StartObject(max(value) + 1)
    for key, item in value.items():
        kind, number = ("UOffsetTRelative", written[key]) if key in written else item
        getattr(builder, f"Prepend{kind}Slot")(key, number, 0)
    return builder.EndObject()
