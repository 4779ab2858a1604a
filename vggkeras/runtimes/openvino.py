"""Load .onnx files in OpenVINO, on a CPU."""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import form_of
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, forms_beside, smallest_shape
from vggkeras.runtimes.predictor import Predictor, taking_turns
from vggkeras.runtimes.providers import Options, cores
from vggkeras.runtimes.seal import card_of

TELEMETRY = "openvino_telemetry"
_TURN = threading.RLock()
_CORES: list[Any] = []  # none yet, or the only one


def load(path: Path, options: Options) -> Predictor:
    """Return a predictor over an .onnx file; see `vggkeras.load`.

    float32 files compute in float32 and int8 files in int8 (AMX or VNNI, where the processor has
    it); float16 files in bfloat16 where the processor has that (AMX), and else in float32. Calls
    from several threads take turns: each already computes on all of its threads.
    """
    card, sealed = card_of(path, options.verify)
    threads = options.threads or cores()
    try:
        core = _core()
        # OpenVINO itself would compute float32 files in bfloat16 where the processor has it.
        has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        half = card.precision == "float16" and has_bfloat16
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        compiled = core.compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be loaded by OpenVINO ({reason}): use provider cpu, or export it again."
        ) from error
    images, output = compiled.inputs[0], compiled.outputs[0]
    shapes = [_shape(value) for value in compiled.inputs]
    check_takes_bytes(path, images.get_element_type().to_dtype() == np.uint8, shapes)
    height, width, channels = shapes[0][1:]
    form = form_of(height is None or width is None, output.any_name)
    beside = forms_beside(path, card, lambda file: load(file, options))

    def run(batch: np.ndarray) -> np.ndarray:
        request.infer([np.ascontiguousarray(batch)])
        return np.array(request.get_output_tensor(0).data)

    return Predictor(
        path=path,
        runtime="openvino",
        version=version("openvino") + (" in bfloat16" if half else ""),
        provider="openvino",
        input_shape=smallest_shape(path, card)
        if form.takes_any_size
        else (height, width, channels),
        outputs=_shape(output)[-1],
        input_name=images.any_name,
        output_name=output.any_name,
        card=card,
        run=taking_turns(run),
        form=form,
        make_form=None if form.takes_any_size else beside,
        threads=threads,
        sealed=sealed,
    )


def import_engine() -> Any:
    """Return OpenVINO, without the package with which importing it tells its makers that it was.

    OpenVINO then takes a stub in that package's place, and keeps it for the life of the process.
    """
    with _TURN:
        hidden = sys.modules.pop(TELEMETRY, None)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[TELEMETRY]
            if hidden is not None:
                sys.modules[TELEMETRY] = hidden


def _core() -> Any:
    """Return OpenVINO's core: one for the life of the process, whichever threads ask for it.

    Each core registers a stack for signals (sigaltstack), and gives back that of the core before it
    when it is dropped. Two dropped in the order they were made would leave a stack that is freed,
    and the next signal, as of Ctrl-C, would end the process.
    """
    with _TURN:
        if not _CORES:
            _CORES.append(import_engine().Core())
        return _CORES[0]


def _shape(value: Any) -> list[Any]:
    """Return the sizes of an input or output; None where any is taken."""
    return [side.get_length() if side.is_static else None for side in value.partial_shape]
