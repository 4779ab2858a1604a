"""What travels inside a .tflite file for phones: TFLite's standard metadata, by which their tools find the labels."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers

LABELS = "labels.txt"


def append_labels(path: Path, about: dict[str, Any]) -> None:
    """Add the labels and the description to a .tflite file, as a zip archive at its end: TFLite's associated files."""
    with zipfile.ZipFile(path, "a") as archive:
        # Without a date, so that the same network gives the same bytes.
        if about["class_names"]:  # features have none
            archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(about["class_names"]) + "\n")
        archive.writestr(zipfile.ZipInfo("vggkeras.json"), json.dumps(about))


def model_metadata(about: dict[str, Any]) -> bytes:
    """Return the ModelMetadata, a flatbuffer of TFLite's metadata_schema.fbs, as MediaPipe and ML Kit read it.

    No process units: the image goes in as bytes, and the answers come out as they are. Of a classifier it names the file
    in the zip archive at the end whose lines are the labels: phones' tools find them by it.
    """
    h, w, c = about["input"]["smallest"]
    uint8, uint32, color = (
        "Uint8",
        "Uint32",
        {1: 2, 3: 1}.get(c, 0),
    )  # ColorSpaceType: RGB 1, GRAYSCALE 2
    size = {0: (uint32, w), 1: (uint32, h)}
    content = {0: (uint8, 2), 1: {0: (uint8, color), 1: size}}  # ContentProperties.ImageProperties
    file = {0: LABELS, 1: "A line a class.", 2: (uint8, 2)}  # AssociatedFileType.TENSOR_AXIS_LABELS
    image = {0: about["input"]["name"], 1: f"uint8, 0-255, {about['resize']}", 3: content}
    output: dict[int, Any] = {0: about["output"]["name"]}
    if classes := len(about["class_names"]):
        output |= {1: "Probability of each class, float32, 0-1.", 6: [file]}
        what = f"Image classifier of {classes} classes"
    else:
        output[1] = f"float32, 0 or more. {about['output']['use']}"
        what = f"Very deep features, {about['output']['shape'][-1]} an image, of a network"
    provenance = about["provenance"]
    model = {
        0: f"VGG {provenance['arch']}",
        1: f"{what}, trained on {provenance.get('data', 'unnamed data')}.",
        2: provenance["model_sha256"][:12],
        3: [{2: [image], 3: [output]}],
        7: "1.0.0",  # min_parser_version: the first, which knew every field here
    }
    builder = flatbuffers.Builder()
    builder.Finish(_put(builder, model), b"M001")
    return bytes(builder.Output())


def _put(builder: Any, value: str | list | dict[int, Any]) -> int:
    """Write a string, a list of tables or a table, whose keys are the fields' places in the schema and whose scalars are
    (type, value); its offset.
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
