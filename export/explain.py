"""Where do they part? A file's way from a photograph to probabilities, stage by stage, against its golden answers.

python -m export.verify --explain model.onnx
python -m export.verify --inputs mine.npy model.onnx     the same question, of a user's own preprocessing
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export import artifact
from vggkeras import augment, configs, datasets, runtimes
from vggkeras.errors import InputError

# Largest error of a layer's channel means, relative to the largest of them; of probabilities, absolute. Features, which
# are float32, are held to a layer's.
LAYER = {"float32": 1e-5, "float16": 1e-2, "int8": 0.2}
SOFTMAX = {"float32": 1e-5, "float16": 1e-2, "int8": 0.3}
LEVELS = 1.0  # of 255: a pixel that another decoder rounds the other way
RESIZED = 0.5  # levels, on average
NEARER = 1.25  # times: how much a fault must explain to be named


@dataclass(frozen=True)
class Stage:
    """One stage, and how far it is from what it should give."""

    name: str
    error: float
    tolerance: float
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """True when the error is within its tolerance."""
        return self.error <= self.tolerance


def told(found: list[Stage]) -> str:
    """The stages as lines, and the first that fails."""
    width = max(len(stage.name) for stage in found)
    lines = [
        f"  {'ok  ' if stage.passed else 'DIFFERS'[:7]:8}{stage.name:{width}}  {stage.error:9.2e} {stage.unit}"
        + (f"  {stage.note}" if stage.note else "")
        for stage in found
    ]
    first = next((stage for stage in found if not stage.passed), None)
    last = (
        f"first difference: {first.name}" + (f": {first.note}" if first and first.note else "")
        if first
        else "no difference"
    )
    return "\n".join([*lines, f"  {last}"])


def stages(path: Path) -> list[Stage]:
    """Every stage of a .onnx or .tflite file on the golden photograph, on the CPU: decode, resize, layers, the answer.

    A layer is compared with the Keras model's by the mean of each of its channels.

    Raises:
        InputError (a ValueError): a file of another make, or whose golden answers are gone; a SavedModel.
    """
    if path.is_dir():
        raise InputError(f"--explain looks inside .onnx and .tflite files; {path} is a SavedModel.")
    contents, golden = _golden(path)
    precision = contents.about.get("precision", "float32")
    found = []
    if golden.original is not None:
        try:
            decoded = datasets.decode(golden.original)
            error = float(np.abs(artifact.decoded_samples(decoded) - golden.layers["decode"]).max())
            found.append(Stage("decode", error, LEVELS, "levels"))
            found.append(
                Stage(
                    "resize",
                    _apart(_crop(contents.about, decoded), golden.images[0]),
                    RESIZED,
                    "levels",
                )
            )
        except InputError as cause:
            found.append(Stage("decode", np.inf, LEVELS, "levels", str(cause)))
    names = [name for name in golden.layers if name != "decode"]
    outputs, answers = (_onnx_layers if path.suffix == ".onnx" else _tflite_layers)(
        path, names, golden.images[:1]
    )
    for name in names:
        expected, received = golden.layers[name], outputs.get(name)
        label = {"mean_rgb": "normalise (mean_rgb)", "predictions": "predictions (scores)"}.get(
            name, name
        )
        if received is None or received.shape != expected.shape:
            what = (
                "no such tensor in the file"
                if received is None
                else f"{len(received)} channels, expected {len(expected)}"
            )
            found.append(Stage(label, np.inf, LAYER[precision], "relative", what))
            continue
        error = float(
            np.nan_to_num(np.abs(received - expected), nan=np.inf).max()
            / max(np.abs(expected).max(), 1e-12)
        )
        found.append(Stage(label, error, LAYER[precision], "relative"))
    note, error = "", np.inf
    if answers.shape == golden.probabilities[:1].shape:
        error = float(np.nan_to_num(np.abs(answers[0] - golden.probabilities[0]), nan=np.inf).max())
    if contents.about["output"]["name"] == "features":
        fc2 = outputs.get("fc2")
        if (
            fc2 is not None
            and fc2.shape == answers[0].shape
            and not _alike(fc2, answers[0], LAYER[precision])
        ):
            note = "not the average over space of its own fc2"
        largest = float(golden.probabilities[0].max())
        return [
            *found,
            Stage("features", error / max(largest, 1e-12), LAYER[precision], "relative", note),
        ]
    scores = outputs.get("predictions")
    if scores is not None and scores.shape == answers[0].shape:
        own = np.exp(scores - scores.max())
        if np.abs(own / own.sum() - answers[0]).max() > LAYER[precision]:
            note = "not the soft-max of its own scores"
    return [*found, Stage("soft-max", error, SOFTMAX[precision], "absolute", note)]


def _alike(values: np.ndarray, others: np.ndarray, tolerance: float) -> bool:
    """Whether they differ by no more than a share of the largest."""
    return bool(np.abs(values - others).max() <= tolerance * np.abs(others).max())


def _golden(path: Path) -> tuple[artifact.Contents, artifact.Golden]:
    try:
        contents = artifact.read(path)
    except artifact.DamagedError as error:
        raise InputError(f"{path} cannot be explained: {error}.") from error
    if contents.golden is None:
        raise InputError(
            f"{path} cannot be explained: its golden answers are not what they were; export it again."
        )
    return contents, contents.golden


def _crop(about: dict[str, Any], image: np.ndarray) -> np.ndarray:
    h, w, c = about["input"]["smallest"]
    return augment.in_channels(augment.center_crop(image, about["scale"], (h, w)), c)


def _apart(image: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two images of one shape, in levels of 255."""
    return (
        float(np.abs(image.astype(np.float64) - other).mean())
        if image.shape == other.shape
        else np.inf
    )


def _onnx_layers(
    path: Path, names: list[str], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The layers' channel means, by name, and the answers. The file is read as it is, with more outputs."""
    import onnxruntime as ort

    def outputs(wanted: list[str]) -> bytes:
        # GraphProto's outputs are its field 12, a ValueInfoProto's name its field 1; two graphs are merged into one.
        return artifact.field(
            artifact.GRAPH,
            b"".join(artifact.field(12, artifact.field(1, n.encode())) for n in wanted),
        )

    options = ort.SessionOptions()
    options.log_severity_level = 3
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = data[:]
        known = [name for name in names if data.find(name.encode()) >= 0]
    present: list[str] = []
    try:
        session = ort.InferenceSession(
            whole + outputs(known), options, providers=["CPUExecutionProvider"]
        )
        present = known
    except Exception as error:
        for name in known:  # one of them is no tensor of the graph: which?
            try:
                ort.InferenceSession(
                    whole + outputs([name]), options, providers=["CPUExecutionProvider"]
                )
                present.append(name)
            except Exception:  # onnxruntime's errors have no common base
                continue
        if not present:
            raise InputError(
                f"{path} cannot be loaded by ONNX Runtime ({str(error)[:300]}): export it again."
            ) from error
        session = ort.InferenceSession(
            whole + outputs(present), options, providers=["CPUExecutionProvider"]
        )
    last = session.get_outputs()[0].name
    try:
        values = session.run([last, *present], {session.get_inputs()[0].name: images})
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(
            f"{path} cannot be run by ONNX Runtime ({str(error)[:300]}): export it again."
        ) from error
    means = {}
    for name, value in zip(present, values[1:], strict=True):
        axis = (
            1 if value.ndim == 4 and name != "mean_rgb" else value.ndim - 1
        )  # channels first, but for the images
        means[name] = _channel_means(value, axis)
    return means, values[0]


def _tflite_layers(
    path: Path, names: list[str], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with runtimes.quiet_stderr():
            interpreter = Interpreter(
                str(path),
                experimental_preserve_all_tensors=True,
                # A delegate keeps its tensors to itself.
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            (details,), (output,) = (
                interpreter.get_input_details(),
                interpreter.get_output_details(),
            )
            interpreter.resize_tensor_input(details["index"], images.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(details["index"], images)
            interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be run by LiteRT ({str(error)[:300]}): export it again."
        ) from error
    means = {}
    for tensor in interpreter.get_tensor_details():
        if tensor["name"] in names:
            value = interpreter.get_tensor(tensor["index"])
            scale, zero = tensor["quantization"]
            if value.dtype == np.int8:
                value = (value.astype(np.float32) - zero) * scale
            means[tensor["name"]] = _channel_means(value, value.ndim - 1)
    return means, interpreter.get_tensor(output["index"])


def _channel_means(value: np.ndarray, axis: int) -> np.ndarray:
    return (
        np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).mean(axis=0, dtype=np.float64)
    )


# What people do to an image on its way to a network, and how it is undone.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "channels come first: give [N, H, W, C]": lambda x: np.moveaxis(x, 0, -1),
    "height and width are swapped": lambda x: x.swapaxes(0, 1),
}
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "channels are BGR: give RGB": lambda x: x[..., ::-1],
}
IMAGENET_MEAN, IMAGENET_STD = (  # what torchvision subtracts and divides by
    np.array(values) * 255 for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)


def _scalings(mean: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    imagenet = np.array(configs.IMAGENET_MEAN_RGB)
    center, deviation = IMAGENET_MEAN, IMAGENET_STD
    if len(mean) != 3:
        imagenet, center, deviation = imagenet.mean(), center.mean(), deviation.mean()
    again = "the mean is subtracted already, and the network subtracts it again"
    return {
        "": lambda x: x,
        "pixels are scaled to 0-1: give 0-255": lambda x: x * 255,
        "pixels are scaled to -1-1: give 0-255": lambda x: (x + 1) * 127.5,
        "128 is subtracted, as for signed bytes: give 0-255": lambda x: x + 128,
        f"{again}: give 0-255": lambda x: x + mean,
        f"{again} (ImageNet's): give 0-255": lambda x: x + imagenet,
        "pixels are normalised by ImageNet's mean and deviation: give 0-255": lambda x: (
            x * deviation + center
        ),
    }


def preprocessing(path: Path, array: np.ndarray, provider: str = "cpu") -> list[Stage]:
    """What a user's own preprocessing does to the golden photograph, told by the damage to pixels and to answers.

    Every usual fault, and every combination of them, is undone in turn: the one after which the image is most like the
    golden one is what was done to it.

    Args:
        path: a .onnx or .tflite file, or a SavedModel folder.
        array: what the preprocessing makes of the photograph that `--original` writes: one image, with or without a batch
            axis, of any type.
        provider: what a .onnx file runs on.

    Returns:
        The stages decode (order of channels), layout, resize, normalise, type; of those that fail, a note says what to do.

    Raises:
        InputError (a ValueError): no photograph in the file; an array that is no image of this network's size.
    """
    contents, golden = _golden(path)
    if golden.original is None:
        raise InputError(f"No photograph travels inside {path}: export it with real --data.")
    about, right = contents.about, golden.images[0]
    image = array[0] if array.ndim == 4 and len(array) == 1 else array
    if image.ndim == 2:
        image = image[..., None]
    h, w, c = right.shape
    expected = (
        f"Expected the golden photograph as one image of {h} x {w} px and {c} channels; received {array.dtype} of shape "
        f"{list(array.shape)}"
    )
    advice = f"rescale its smallest side to {about['scale']} px, take the central {h} x {w} px, save that."
    if not np.issubdtype(image.dtype, np.integer) and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"{expected}: save the numbers that the network would get.")
    if image.size and image.min() == image.max():
        raise InputError(
            f"{expected}, every number {image.min():g}: save what the network would get of the photograph."
        )
    if not np.isfinite(image).all():
        raise InputError(
            f"{expected}, not all of it finite: save the numbers that the network would get."
        )
    layouts = {
        name: moved
        for name, move in LAYOUTS.items()
        if image.ndim == 3 and (moved := move(image)).shape == right.shape
    }
    if not layouts:
        raise InputError(f"{expected}: {advice}")
    scalings = _scalings(np.array(about["mean_rgb"]))
    tried: list[tuple[float, float, tuple[str, str, str], np.ndarray]] = []
    for names in itertools.product(layouts, ORDERS, scalings):
        layout, order, scaling = names
        undone = scalings[scaling](ORDERS[order](layouts[layout].astype(np.float64)))
        error = _apart(undone.clip(-1000, 1000), right)
        # A fault more must bring the image much nearer: one of another place may be a little nearer by chance.
        tried.append(((error + 0.1) * NEARER ** sum(map(bool, names)), error, names, undone))
    _, error, (layout, order, scaling), undone = min(tried, key=lambda one: one[0])
    candidate = runtimes.load(path, provider)
    given = (
        np.rint(image if image.shape == right.shape else np.zeros_like(right))
        .clip(0, 255)
        .astype(np.uint8)
    )
    mended = np.rint(undone).clip(0, 255).astype(np.uint8)
    right_answer = golden.probabilities[:1]
    largest = (
        float(right_answer.max()) if candidate.features else 1.0
    )  # what features are measured by
    before, after = (
        float(np.abs(candidate(x[None]) - right_answer).max()) / largest for x in (given, mended)
    )
    told_before = (
        f"answers are off by {before:.2g}"
        if image.shape == right.shape
        else "the network refuses its shape"
    )
    damage = f" ({told_before}; with this undone, answers are off by {after:.2g})"
    found = [
        Stage("decode (order)", float(bool(order)), 0.0, "faults", order + damage if order else ""),
        Stage("layout", float(bool(layout)), 0.0, "faults", layout + damage if layout else ""),
    ]
    # Rounded down instead of to the nearest, all of it is off, and none of it by more than a level.
    rounding = np.abs(undone - right).max() < 1.01 * LEVELS
    resize = Stage("resize", error, LEVELS if rounding else RESIZED, "levels")
    if not resize.passed:
        note = f"{_likely_filter(about, golden, undone)}; answers are then off by {after:.2g}"
        resize = replace(resize, note=note)
    found.append(resize)
    found.append(
        Stage("normalise", float(bool(scaling)), 0.0, "faults", scaling + damage if scaling else "")
    )
    note = (
        ""
        if scaling or image.dtype == np.uint8
        else f"{image.dtype}: the file takes bytes: numpy.rint(array).astype('uint8')"
    )
    return [*found, Stage("type", float(bool(note)), 0.0, "faults", note)]


def _likely_filter(about: dict[str, Any], golden: artifact.Golden, image: np.ndarray) -> str:
    """Which other way of rescaling the photograph comes nearest."""
    assert golden.original is not None
    original = Image.fromarray(datasets.decode(golden.original))
    h, w, c = golden.images[0].shape
    rescaled = augment.rescale(np.asarray(original), about["scale"]).shape[:2]
    ways = {}
    for kind in (
        Image.Resampling.NEAREST,
        Image.Resampling.BICUBIC,
        Image.Resampling.LANCZOS,
        Image.Resampling.BOX,
    ):
        resized = np.asarray(original.resize(rescaled[::-1], kind))
        ways[f"the filter is {kind.name.lower()}"] = next(augment.grid_crops(resized, (h, w), 1))
    ways["bilinear without antialiasing"] = next(
        augment.grid_crops(_two_taps(np.asarray(original), rescaled), (h, w), 1)
    )
    ways["the whole image is squeezed into the crop"] = np.asarray(
        original.resize((w, h), Image.Resampling.BILINEAR)
    )
    side = max(h, w)
    ways[f"the smallest side is rescaled to {side} px"] = augment.center_crop(
        np.asarray(original), side, (h, w)
    )
    apart = {name: _apart(augment.in_channels(way, c), image) for name, way in ways.items()}
    nearest = min(apart, key=lambda name: apart[name])
    advice = f"{about['resize']}"
    if apart[nearest] < 0.5 * _apart(golden.images[0], image):
        return f"{nearest}: expected {advice}"
    return f"not the pixels of {advice}: another filter, size or place"


def _two_taps(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear as OpenCV, and TensorFlow without antialiasing, have it."""
    found = image.astype(np.float64)
    for axis, side in enumerate(size):
        places = ((np.arange(side) + 0.5) * found.shape[axis] / side - 0.5).clip(
            0, found.shape[axis] - 1
        )
        low = np.floor(places).astype(int)
        high, share = np.minimum(low + 1, found.shape[axis] - 1), places - low
        share = share[:, None, None] if axis == 0 else share[None, :, None]
        found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
    return np.rint(found).astype(np.uint8)
