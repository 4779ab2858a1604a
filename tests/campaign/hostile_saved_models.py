"""Hostile SavedModels: image classifiers whose graph reads, writes, prints or runs Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _operations(canary: Path) -> dict[str, Callable]:
    """Return what each model does besides answering, as a function that gives a number."""
    import tensorflow as tf

    secret = "/etc/hostname"

    def number(text) -> tf.Tensor:
        return tf.cast(tf.strings.length(text), tf.float32) * 0

    def write():
        with tf.control_dependencies([tf.io.write_file(str(canary), "written")]):
            return tf.constant(0.0)

    def python():
        return tf.numpy_function(lambda: 0.0, [], tf.float32)

    def dataset(make: Callable) -> Callable:
        return lambda: make().reduce(0.0, lambda total, item: total + number(item))

    def matching():
        return number(tf.strings.reduce_join(tf.io.matching_files("/etc/*")))

    def printed():
        tf.print("\x1b]0;hostile\x07 written by the graph")
        return tf.constant(0.0)

    def saved():
        tf.raw_ops.Save(filename=str(canary), tensor_names=["x"], data=[tf.constant(1.0)])
        return tf.constant(0.0)

    def restored():
        return tf.raw_ops.RestoreV2(
            prefix=secret, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0]

    return {
        "ReadFile": lambda: number(tf.io.read_file(secret)),
        "WriteFile": write,
        "PyFunc": python,
        "MatchingFiles": matching,
        "TextLineDataset": dataset(lambda: tf.data.TextLineDataset(secret)),
        "FixedLengthRecordDataset": dataset(lambda: tf.data.FixedLengthRecordDataset(secret, 1)),
        "PrintV2": printed,
        "Save": saved,
        "RestoreV2": restored,
        "InitializeTableFromTextFile": lambda: tf.constant(0.0),  # the table does it
    }


NAMES = (
    "ReadFile",
    "WriteFile",
    "PyFunc",
    "MatchingFiles",
    "TextLineDataset",
    "FixedLengthRecordDataset",
    "PrintV2",
    "Save",
    "RestoreV2",
    "InitializeTableFromTextFile",
)


def write_saved_model(name: str, folder: Path, canary: Path) -> None:
    """Write a SavedModel that looks like one of ours: the same names, shapes and types."""
    import tensorflow as tf

    aside = _operations(canary)[name]

    class Network(tf.Module):
        table = None

        @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.uint8, "images")])
        def serve(self, images):
            scores = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2])
            scores = tf.concat([scores, scores, scores, scores[:, :1]], 1) + aside()
            return {"probabilities": tf.nn.softmax(scores)}

    network = Network()
    if name == "InitializeTableFromTextFile":
        whole, line = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        file = tf.lookup.TextFileInitializer("/etc/hostname", tf.string, whole, tf.int64, line)
        network.table = tf.lookup.StaticHashTable(file, -1)
    signatures = {"serving_default": network.serve, "serve": network.serve}
    tf.saved_model.save(network, str(folder), signatures=signatures)
