"""Where do they part? A file's way from a photograph to probabilities, stage by stage, against its golden answers.

python -m export.verify --explain model.onnx
python -m export.verify --inputs mine.npy model.onnx     the same question, of a user's own preprocessing
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export import artifact, containers
from export import golden as golden_module
from vggkeras.card import Form, ModelCard
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.runtimes import stderr

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
    contents, golden = golden_of(path)
    precision = contents.card.precision
    found = []
    if golden.original is not None:
        try:
            decoded = decoding.decode(golden.original)
            error = float(
                np.abs(golden_module.decoded_samples(decoded) - golden.layers["decode"]).max()
            )
            found.append(Stage("decode", error, LEVELS, "levels"))
            found.append(
                Stage(
                    "resize",
                    difference_text(_crop(contents.card, decoded), golden.images[0]),
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
    if contents.card.form is Form.FEATURES:
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


def golden_of(path: Path) -> tuple[artifact.Contents, golden_module.Golden]:
    try:
        contents = artifact.read(path)
    except containers.DamagedError as error:
        raise InputError(f"{path} cannot be explained: {error}.") from error
    if contents.golden is None:
        raise InputError(
            f"{path} cannot be explained: its golden answers are not what they were; export it again."
        )
    return contents, contents.golden


def _crop(card: ModelCard, image: np.ndarray) -> np.ndarray:
    assert card.input_shape is not None
    assert card.scale is not None
    h, w, c = card.input_shape
    return augment.in_channels(augment.center_crop(image, card.scale, (h, w)), c)


def difference_text(image: np.ndarray, other: np.ndarray) -> float:
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
        return containers.field(
            containers.GRAPH,
            b"".join(containers.field(12, containers.field(1, n.encode())) for n in wanted),
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
        with stderr.quiet_stderr():
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
