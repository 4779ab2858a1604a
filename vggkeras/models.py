"""The networks of Table 1 as Keras functional models, for any Keras backend.

python -m vggkeras info D
"""

from __future__ import annotations

import json
import math
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
from keras import layers

from vggkeras import archives, configs, memory, safe_mode
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.files import replacing
from vggkeras.layers import LRN, mean_layer


@dataclass(frozen=True)
class _Options:
    """What the layers of a network share; see `build`."""

    batch_norm: bool
    dropout: float
    classifier_activation: str | None
    init: str
    weight_decay: float
    precision: str | None
    seeds: Iterator[int | None]  # one is drawn for each kernel and each dropout, in order

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1); received {self.dropout}.")
        if self.precision not in (None, *configs.PRECISIONS):
            raise InputError(
                f"precision must be one of {', '.join(configs.PRECISIONS)}; received "
                f"{self.precision!r}."
            )
        if self.init not in INITIALIZERS:
            raise InputError(
                f"init must be one of {', '.join(INITIALIZERS)}; received {self.init!r}."
            )

    def kernel(self) -> dict[str, Any]:
        """Return the arguments for a layer's next kernel."""
        # Keras' L2(l) adds l |kernel|^2: half of Caffe's multiplier gives Caffe's gradient.
        penalty = keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None
        initializer = INITIALIZERS[self.init](next(self.seeds))
        return {"kernel_initializer": initializer, "kernel_regularizer": penalty}


INITIALIZERS: dict[str, Callable[[int | None], keras.initializers.Initializer]] = {
    "glorot": lambda seed: keras.initializers.GlorotUniform(seed=seed),
    "he": lambda seed: keras.initializers.HeNormal(seed=seed),
    "paper": lambda seed: keras.initializers.RandomNormal(stddev=0.1, seed=seed),
    "zeros": lambda seed: keras.initializers.Zeros(),  # for weights that are loaded
}


def build(
    arch: str = "D",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
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
    boxes: Literal["scr", "pcr"] | None = None,
) -> keras.Model:
    """Return one of the paper's networks, as a functional, uncompiled `keras.Model`.

    It maps images `[N, H, W, C]`, 0-255, RGB, to class probabilities `[N, classes]`, float32.

    Args:
        arch: A, A-LRN, B, C, D or E (Table 1), or VGG11, VGG13, VGG16, VGG19.
        input_shape: (height, width, channels) of the training crop, 32 px or more a side.
        classes: number of classes, 2 or more; by default that of `class_names`, else 1,000.
        class_names: stored in the model, and in the .keras files that its `save` writes: what
            `export` and `evaluate` compare with the data's names; without them, by index.
        batch_norm: normalize after every convolution, before its ReLU. Not in the paper.
        width: multiplies the number of filters of every convolution; at least one is left.
        fc_units: units of fc1 and fc2; 4096 in the paper.
        dropout: fraction of fc1's and fc2's outputs to drop while training, in [0, 1).
        classifier_activation: of the last layer; None gives the class scores before soft-max.
        mean_rgb: what the first layer subtracts, a number a channel, 0-255; by default ImageNet's.
        init: "glorot" (uniform; the paper's later finding), "he" (normal), "paper" (normal,
            variance 1e-2).
        weight_decay: w of Caffe's L2 penalty on every kernel, w/2 |kernel|^2 (gradient w * kernel).
        precision: float32, mixed_bfloat16 or mixed_float16; Keras' global policy when not given.
            Weights, centering, LRN and probabilities are float32 in each.
        seed: makes the initial weights and dropout repeatable.
        boxes: the last layer is `boxes`, of `configs.box_outputs` numbers (Appendix A), linear.

    Raises:
        InputError (a ValueError): an unknown or bad value; weights that do not fit in memory.
    """
    classes = _checked_classes(classes, class_names)
    sizes: dict[str, Any] = {"batch_norm": batch_norm, "width": width, "fc_units": fc_units}
    steps = list(configs.plan(arch, input_shape, classes, **sizes, boxes=boxes))
    memory.check(memory.needed_bytes(steps), f"{network_name(arch)} with its weights")
    options = _Options(
        batch_norm, dropout, classifier_activation, init, weight_decay, precision, _seeds(seed)
    )
    images = keras.Input(input_shape, name="images")
    x = mean_layer(_checked_mean(mean_rgb, input_shape[2]))(images)
    for step in steps:
        x = _layer(step, x, options)
    model = keras.Model(images, x, name=network_name(arch))
    if class_names is not None:
        _keep_names(model, class_names)
    return model


def _checked_classes(classes: int | None, class_names: Sequence[str] | None) -> int:
    """Return the number of classes.

    Raises:
        InputError (a ValueError): names that are not text, differ in number, or are not different.
    """
    if class_names is None:
        return 1000 if classes is None else classes
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"class_names must be a list of text; received {class_names!r}.")
    if len(set(class_names)) != len(class_names) or classes not in (None, len(class_names)):
        raise InputError(
            f"class_names must be different names, one a class; received {len(class_names)} names, "
            f"{len(set(class_names))} of them different, for {classes or len(class_names)} classes."
        )
    return len(class_names)


def _keep_names(model: keras.Model, class_names: Sequence[str]) -> None:
    """Let a model carry the names of its classes, also into the files that Keras saves of it.

    Keras has no place for them in a functional model, and `ModelCheckpoint` calls `model.save`.
    """
    model.class_names = tuple(class_names)
    card = ModelCard(model.class_names)

    def save(filepath: Any, *args: Any, **options: Any) -> None:
        type(model).save(model, filepath, *args, **options)
        if str(filepath).endswith(".keras"):
            _add_card(Path(filepath), card)

    model.save = save


def network_name(arch: str) -> str:
    """Return the name of a configuration's model: vgg_a_lrn."""
    return f"vgg_{configs.canonical_arch(arch).lower().replace('-', '_')}"


def _seeds(seed: int | None) -> Iterator[int | None]:
    numbers = random.Random(seed)
    while True:
        yield None if seed is None else numbers.randrange(2**31)


def _checked_mean(mean_rgb: Sequence[float] | None, channels: int) -> Sequence[float]:
    if mean_rgb is None:
        imagenet = configs.IMAGENET_MEAN_RGB
        return imagenet if channels == 3 else (sum(imagenet) / 3,) * channels
    if len(mean_rgb) != channels:
        raise InputError(
            f"mean_rgb must be {channels} numbers, one a channel; received {tuple(mean_rgb)}."
        )
    return mean_rgb


def _layer(step: configs.Layer, x: Any, options: _Options) -> Any:
    """Apply one layer of a plan, with what belongs to it."""
    policy = options.precision
    if step.kind == "conv":
        return _convolution_block(step, x, options)
    if step.kind == "lrn":
        return LRN(dtype="float32", name=step.name)(x)  # squares leave float16's range
    if step.kind == "pool":
        return layers.MaxPooling2D(2, dtype=policy, name=step.name)(x)  # [N, H // 2, W // 2, C]
    if step.kind == "flatten":
        return layers.Flatten(dtype=policy, name=step.name)(x)  # [N, H * W * C]
    if step.kind == "dense":
        return _dense_block(step, x, options)
    return layers.Dense(
        step.output_shape[0],
        activation=None if step.name == "boxes" else options.classifier_activation,
        dtype="float32",
        name=step.name,
        **options.kernel(),
    )(x)  # [N, classes]


def _convolution_block(step: configs.Layer, x: Any, options: _Options) -> Any:
    """Apply a convolution and its ReLU, with batch normalization between them if asked for."""
    policy = options.precision
    x = layers.Conv2D(
        step.output_shape[-1],
        step.kernel,
        padding="same",
        activation=None if options.batch_norm else "relu",
        dtype=policy,
        name=step.name,
        **options.kernel(),
    )(x)  # [N, H, W, filters]
    if options.batch_norm:
        norm, relu = step.name.replace("conv", "bn"), step.name.replace("conv", "relu")
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy, name=norm)(x)
        x = layers.ReLU(dtype=policy, name=relu)(x)
    return x


def _dense_block(step: configs.Layer, x: Any, options: _Options) -> Any:
    """Apply a fully connected layer, its ReLU and dropout."""
    policy, kernel = options.precision, options.kernel()
    x = layers.Dense(
        step.output_shape[0], activation="relu", dtype=policy, name=step.name, **kernel
    )(x)  # [N, units]
    return layers.Dropout(
        options.dropout, seed=next(options.seeds), dtype=policy, name=f"{step.name}_dropout"
    )(x)


def to_dense(model: keras.Model, *, scores: bool = False) -> keras.Model:
    """Return a network turned fully convolutional, to be run on whole images (section 3.2).

    fc1 becomes a convolution as large as the last feature map (7 x 7 at 224 px), fc2 and
    predictions 1 x 1 ones, none padded, with exactly the classifier's numbers. The result takes
    images of any size from the training crop up and gives a map `[N, h, w, classes]`, h = H // 32 -
    6 at 224 px. On the training size that is the classifier's own answer, h = w = 1. A network of
    boxes gives a map of its outputs alike: at row i and column j, boxes in fractions of the crop
    whose corner is (32 i, 32 j). The weights are a copy: training one model leaves the other as it
    is.

    Args:
        model: what `build()` made, or a loaded .keras file of it.
        scores: True leaves out the soft-max, because the paper first averages the class scores over
            space.

    Raises:
        InputError (a ValueError): the model has no fc1, fc2 and predictions to convert.
    """
    _check_has_fc(model)
    h, w, c = model.get_layer("flatten").input.shape[1:]
    images = x = keras.Input((None, None, model.input_shape[-1]), name="images")
    for layer in model.layers[1:]:
        if layer.name == "flatten":
            continue
        weights = layer.get_weights()
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


def _check_has_fc(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise InputError(
            f"to_dense expects a keras.Model of vggkeras.build(); received {type(model).__name__}."
        )
    names = {layer.name for layer in model.layers}
    if not {"flatten", *configs.FC[:-1]} <= names or not {"boxes", configs.FC[-1]} & names:
        raise InputError(
            "to_dense expects a network of vggkeras.build() with layers flatten, fc1, fc2 and "
            f"predictions or boxes; received {model.name!r} with {', '.join(sorted(names))}."
        )


def dense_classifier(model: keras.Model) -> keras.Model:
    """Return the network that the paper tests with: images of any size -> `[N, classes]`.

    It is `to_dense`, but the class scores are averaged over space before the soft-max (section
    3.2). Images are as large as the training crop or larger; on the training size the result is the
    classifier's own.

    Raises:
        InputError (a ValueError): the model cannot be converted (see `to_dense`), or does not end
            in soft-max.
    """
    dense = to_dense(model, scores=True)
    if "boxes" in {layer.name for layer in model.layers}:
        raise InputError(f"Expected a classifier; received {model.name!r}, a network of boxes.")
    if keras.activations.serialize(model.get_layer("predictions").activation) != "softmax":
        raise InputError(
            f"Expected a classifier that ends in soft-max; received {model.name!r}, which does "
            "not: build it with classifier_activation='softmax'."
        )
    x = layers.GlobalAveragePooling2D(dtype="float32", name="average")(dense.output)  # [N, classes]
    x = layers.Softmax(dtype="float32", name="probabilities")(x)
    return keras.Model(dense.input, x, name=dense.name)


def dense_features(model: keras.Model) -> keras.Model:
    """Return the network of Appendix B: images of any size -> features `[N, fc_units]`, float32.

    The last FC layer is dropped; what fc2 gives after its ReLU, computed densely as by `to_dense`,
    is averaged over space. On the training size that is fc2's own output. Mirrors, scales and
    normalization are in `vggkeras.features`.

    Raises:
        InputError (a ValueError): the model cannot be converted (see `to_dense`).
    """
    dense = to_dense(model)
    x = dense.get_layer("fc2_dropout").output  # without predictions
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)  # [N, fc_units]
    return keras.Model(dense.input, x, name=f"{model.name}_features")


def save_model(model: keras.Model, path: Path, card: ModelCard) -> None:
    """Write a .keras file with its card in it: class names, data, scale, recipe. Atomic."""
    with replacing(path) as beside:
        keras.saving.save_model(model, beside)
        _add_card(beside, card)


def _add_card(path: Path, card: ModelCard) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archives.ABOUT, json.dumps(card.to_json()))


def load_model(path: Path) -> tuple[keras.Model, ModelCard]:
    """Return a .keras file's model and its card, which is empty in a file that Keras alone saved.

    Raises InputError for a file that is no .keras file, that was changed since it was saved, or
    whose loading would run code or read other files: Keras' safe mode stays on.
    """
    config, described = archives.read_keras_archive(path)
    with archives.checked_h5(path, str(path)) as (_, shapes):
        stored = sum(map(math.prod, shapes.values()))
    try:
        safe_mode.check_network(config, stored)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except OSError:
        raise
    except Exception as error:  # Keras raises what its parts raise: ValueError, TypeError …
        raise InputError(
            f"{path} cannot be loaded: expected a .keras file saved by vggkeras or Keras, with no "
            f"code of its own in it (safe mode); {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return model, ModelCard.from_json(described, path)
