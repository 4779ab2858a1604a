"""The networks of Table 1 as Keras functional models, for any Keras backend.

python -m vggkeras info D
"""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from keras import layers

from vggkeras import configs
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.files import replacing
from vggkeras.layers import LRN, mean_layer


def build(
    arch: str = "D",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    width: float = 1.0,
    fc_units: int = 4096,
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    mean_rgb: Sequence[float] | None = None,
    init: str = "glorot",
    weight_decay: float = 5e-4,
    precision: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """One of the paper's networks, as a functional, uncompiled `keras.Model`.

    It maps images `[N, H, W, C]`, 0-255, RGB, channels last, to class probabilities `[N, classes]`, float32.

    Args:
        arch: A, A-LRN, B, C, D or E (Table 1), or VGG11, VGG13, VGG16, VGG19.
        input_shape: (height, width, channels) of the training crop, 32 px or more a side.
        classes: number of classes, 2 or more.
        batch_norm: normalise after every convolution, before its ReLU. Not in the paper.
        width: multiplies the number of filters of every convolution; at least one is left.
        fc_units: units of fc1 and fc2; 4096 in the paper.
        dropout: dropped share of fc1's and fc2's outputs while training, in [0, 1).
        classifier_activation: of the last layer; None gives the class scores before soft-max.
        mean_rgb: what the first layer subtracts, one number a channel, 0-255. ImageNet's when not given
            (for other than 3 channels, its average).
        init: "glorot" (uniform; the paper's later finding), "he" (normal), "paper" (normal, variance 1e-2).
        weight_decay: multiplier w of Caffe's L2 penalty on every kernel, w/2 |kernel|^2, whose gradient is w * kernel.
        precision: of computation: float32, mixed_bfloat16 or mixed_float16; Keras' global policy when not given. Weights,
            centring, LRN and probabilities are float32 whatever it is.
        seed: makes the initial weights and dropout repeatable.

    Raises:
        InputError (a ValueError): unknown arch, init or precision, images below 32 px, numbers out of range.
    """
    arch = configs.canonical_arch(arch)
    steps = list(
        configs.plan(
            arch, input_shape, classes, batch_norm=batch_norm, width=width, fc_units=fc_units
        )
    )
    channels = input_shape[2]
    if mean_rgb is None:
        imagenet = configs.IMAGENET_MEAN_RGB
        mean_rgb = imagenet if channels == 3 else (sum(imagenet) / 3,) * channels
    if len(mean_rgb) != channels:
        raise InputError(
            f"mean_rgb must be {channels} numbers, one a channel; received {tuple(mean_rgb)}."
        )
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be in [0, 1); received {dropout}.")
    if precision not in (None, *configs.PRECISIONS):
        raise InputError(
            f"precision must be one of {', '.join(configs.PRECISIONS)}; received {precision!r}."
        )
    seeds = random.Random(seed)

    def next_seed() -> int | None:
        return None if seed is None else seeds.randrange(2**31)

    def kernel() -> dict[str, Any]:
        initializers = {
            "glorot": lambda s: keras.initializers.GlorotUniform(seed=s),
            "he": lambda s: keras.initializers.HeNormal(seed=s),
            "paper": lambda s: keras.initializers.RandomNormal(stddev=0.1, seed=s),
            "zeros": lambda s: (
                keras.initializers.Zeros()
            ),  # for weights that are loaded: no numbers drawn in vain
        }
        if init not in initializers:
            raise InputError(f"init must be one of {', '.join(initializers)}; received {init!r}.")
        # Keras' L2(l) adds l |kernel|^2: half of Caffe's multiplier gives Caffe's gradient.
        penalty = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
        return {
            "kernel_initializer": initializers[init](next_seed()),
            "kernel_regularizer": penalty,
        }

    images = keras.Input(input_shape, name="images")
    x = mean_layer(mean_rgb)(images)
    for step in steps:
        if step.kind == "conv":
            filters = step.output_shape[-1]
            activation = None if batch_norm else "relu"
            conv = {
                "padding": "same",
                "activation": activation,
                "dtype": precision,
                "name": step.name,
                **kernel(),
            }
            x = layers.Conv2D(filters, step.kernel, **conv)(x)  # [N, H, W, filters]
            if batch_norm:
                norm = {"momentum": 0.9, "epsilon": 1e-5, "dtype": precision}
                x = layers.BatchNormalization(name=step.name.replace("conv", "bn"), **norm)(x)
                x = layers.ReLU(dtype=precision, name=step.name.replace("conv", "relu"))(x)
        elif step.kind == "lrn":
            x = LRN(dtype="float32", name=step.name)(x)  # squares leave float16's range
        elif step.kind == "pool":
            x = layers.MaxPooling2D(2, dtype=precision, name=step.name)(x)  # [N, H // 2, W // 2, C]
        elif step.kind == "flatten":
            x = layers.Flatten(dtype=precision, name=step.name)(x)  # [N, H * W * C]
        elif step.kind == "dense":
            x = layers.Dense(
                step.output_shape[0], activation="relu", dtype=precision, name=step.name, **kernel()
            )(x)
            x = layers.Dropout(
                dropout, seed=next_seed(), dtype=precision, name=f"{step.name}_dropout"
            )(x)
        else:
            last = {
                "activation": classifier_activation,
                "dtype": "float32",
                "name": step.name,
                **kernel(),
            }
            x = layers.Dense(classes, **last)(x)  # [N, classes]
    return keras.Model(images, x, name=f"vgg_{arch.lower().replace('-', '_')}")


def to_dense(model: keras.Model, *, scores: bool = False) -> keras.Model:
    """A classifier turned fully convolutional, to be run on whole images (paper, section 3.2).

    fc1 becomes a convolution as large as the last feature map (7 x 7 at 224 px), fc2 and predictions 1 x 1 ones, none
    padded, with exactly the classifier's numbers. The result takes images of any size from the training crop up and
    gives a map `[N, h, w, classes]`, h = H // 32 - 6 at 224 px; on the training size that is the classifier's own
    answer, h = w = 1. The weights are a copy: training one model leaves the other as it is.

    Args:
        model: what `build()` made, or a loaded .keras file of it.
        scores: True leaves out the soft-max, for the paper averages the class scores over space first.

    Raises:
        InputError (a ValueError): the model has no fc1, fc2 and predictions to convert.
    """
    if not isinstance(model, keras.Model):
        raise InputError(
            f"to_dense expects a keras.Model of vggkeras.build(); received {type(model).__name__}."
        )
    names = {layer.name for layer in model.layers}
    if not {"flatten", "fc1", "fc2", "predictions"} <= names:
        raise InputError(
            "to_dense expects a classifier of vggkeras.build() with layers flatten, fc1, fc2 and predictions; "
            f"received {model.name!r} with {', '.join(sorted(names))}."
        )
    h, w, c = model.get_layer("flatten").input.shape[1:]

    images = x = keras.Input((None, None, model.input_shape[-1]), name="images")
    for layer in model.layers[1:]:
        weights = layer.get_weights()
        if layer.name == "flatten":
            continue
        if isinstance(layer, layers.Dense):
            config = layer.get_config()
            shape = (h, w, c, -1) if layer.name == "fc1" else (1, 1, layer.kernel.shape[0], -1)
            copy = layers.Conv2D(
                config["units"],
                shape[:2],
                activation=None if scores and layer.name == "predictions" else config["activation"],
                kernel_regularizer=config["kernel_regularizer"],
                dtype=layer.dtype_policy,
                name=layer.name,
            )
            weights[0] = weights[0].reshape(shape)
        else:
            copy = layer.__class__.from_config(layer.get_config())
        x = copy(x)
        copy.set_weights(weights)
    return keras.Model(images, x, name=f"{model.name}_dense")


def dense_classifier(model: keras.Model) -> keras.Model:
    """`to_dense`, as the paper tests with it: images of any size from the training crop up -> posteriors `[N, classes]`.

    The class scores are averaged over space first, then comes the soft-max (section 3.2). On the training size that is
    the classifier itself.

    Raises:
        InputError (a ValueError): the model cannot be converted (see `to_dense`), or does not end in soft-max.
    """
    dense = to_dense(model, scores=True)
    if keras.activations.serialize(model.get_layer("predictions").activation) != "softmax":
        raise InputError(
            "Expected a classifier that ends in soft-max: build it with classifier_activation='softmax'."
        )
    x = layers.GlobalAveragePooling2D(dtype="float32", name="average")(dense.output)  # [N, classes]
    x = layers.Softmax(dtype="float32", name="probabilities")(x)
    return keras.Model(dense.input, x, name=dense.name)


def dense_features(model: keras.Model) -> keras.Model:
    """The very deep features of Appendix B: images of any size from the training crop up -> `[N, fc_units]`, float32.

    The last FC layer is dropped; what fc2 gives after its ReLU, computed densely as by `to_dense`, is averaged over space.
    On the training size that is fc2's own output. Mirrors, scales and normalisation are of `vggkeras.features`.

    Raises:
        InputError (a ValueError): the model cannot be converted (see `to_dense`).
    """
    dense = to_dense(model)
    x = dense.get_layer(
        "fc2_dropout"
    ).output  # the layers before are taken, predictions is left out
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)  # [N, fc_units]
    return keras.Model(dense.input, x, name=f"{model.name}_features")


ABOUT = "vggkeras.json"  # entry of a .keras file (a zip archive) that Keras itself passes over


def save_model(model: keras.Model, path: Path, card: ModelCard) -> None:
    """Write a .keras file that also says what it is: class names, data, scale, recipe, versions. Atomic."""
    with replacing(path) as beside:
        model.save(beside)
        with zipfile.ZipFile(beside, "a") as archive:
            archive.writestr(ABOUT, json.dumps(card.to_json()))


def load_model(path: Path) -> tuple[keras.Model, ModelCard]:
    """A .keras file's model and what `save_model` wrote beside it ({} in a file that Keras alone saved).

    Raises InputError for a file that is no .keras file, or whose loading would run code: Keras' safe mode stays on.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a .keras file (they are zip archives): it is damaged or of another kind; save it again."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read(ABOUT)) if ABOUT in archive.namelist() else {}
    except OSError:
        raise
    except (
        Exception
    ) as error:  # Keras raises what its parts raise: ValueError, KeyError, TypeError, BadZipFile
        raise InputError(
            f"{path} cannot be loaded: expected a .keras file saved by vggkeras or Keras, with no code of its own "
            f"in it (safe mode); {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return model, ModelCard.from_json(described, path)
