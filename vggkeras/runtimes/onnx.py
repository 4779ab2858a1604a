"""TODO"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, form_of, forms_beside, smallest_shape
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import INSTALL, ONNX_PROVIDERS, cores
from vggkeras.runtimes.stderr import quiet_stderr


def load(
    path: Path, provider: str, threads: int | None, tf32: bool, optimize: bool = True
) -> Predictor:
    import onnxruntime as ort

    has = threads or cores()
    try:
        dense = path.stem.endswith((".dense", ".features"))
        session, reason = onnx_session(str(path), provider, has, tf32, dense, optimize)
    except Exception as error:  # onnxruntime's errors have no common base
        if "fallback to CPU EP" in str(error):
            raise InputError(
                f"provider {provider}: a part of {path} would run on the CPU, as ONNX Runtime cannot run it there: use "
                "cpu, or export the model again."
            ) from error
        raise InputError(
            f"{path} cannot be loaded by ONNX Runtime ({str(error)[:300]}): export it again."
        ) from error
    if session is None:
        raise InputError(
            f"provider {provider}: ONNX Runtime {ort.__version__} did not load {ONNX_PROVIDERS[provider]}: {reason}. "
            f"Needed: {INSTALL[provider]}; or use cpu (`python -m vggkeras doctor` says what loads)."
        )
    details, output = session.get_inputs()[0], session.get_outputs()[0]
    check_takes_bytes(path, "uint8" in details.type, [i.shape for i in session.get_inputs()])
    described = session.get_modelmeta().custom_metadata_map.get("vggkeras", "{}")
    card = ModelCard.from_json(json.loads(described), path)
    form = form_of(any(isinstance(side, str) for side in details.shape[1:]), output.name)

    def plain(images: np.ndarray) -> np.ndarray:
        return session.run([output.name], {details.name: np.ascontiguousarray(images)})[0]

    run = plain if provider == "cpu" else bound(session, "cuda")

    def again(file: Path) -> Predictor:
        return load(file, provider, threads, tf32)

    return Predictor(
        path,
        "onnxruntime",
        ort.__version__,
        provider,
        smallest_shape(path, card) if form.takes_any_size else tuple(details.shape[1:]),
        output.shape[-1],
        details.name,
        output.name,
        card,
        run,
        form,
        None if form.takes_any_size else forms_beside(path, card, again),
        has,
        tf32,
    )


def load_unoptimized(path: str | os.PathLike) -> Predictor:
    """Load a .onnx file on the CPU without any optimization of its graph.

    Of an int8 file everything then computes in float32 between quantized values: what the integers should give.
    """
    return load(Path(path), "cpu", None, False, optimize=False)


def onnx_session(
    model: str | bytes,
    provider: str,
    threads: int = 1,
    tf32: bool = False,
    dense: bool = False,
    optimize: bool = True,
) -> tuple[Any, str]:
    """(a session of ONNX Runtime all of whose operations run on a provider, ""); (None, why), if that does not load.

    Args:
        model: the file's path, or its bytes.
        provider: one of `PROVIDERS`.
        threads: CPU threads of one operation.
        tf32: allow TF32 in CUDA's kernels.
        dense: images of another size every call.
        optimize: fuse operations, and compute in integers what is quantized.

    Raises:
        Exception: whatever ONNX Runtime raises for a file that it cannot run, or not whole on this provider.
    """
    import onnxruntime as ort

    wanted = ONNX_PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        return None, f"this build of it has {', '.join(ort.get_available_providers())}"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = not dense  # its plan of memory is of one shape
    providers: list[Any] = [wanted]
    if provider != "cpu":
        cuda = {"use_tf32": str(int(tf32))}
        if dense:
            cuda["cudnn_conv_algo_search"] = (
                "HEURISTIC"  # the default tries every algorithm at every new size
            )
        # TensorRT leaves to CUDA what it cannot run: still on the card.
        providers = [*([wanted] if provider == "tensorrt" else []), (ONNX_PROVIDERS["cuda"], cuda)]
        # Creating the session then fails where any operation is left to the CPU. Ours leave none: Cast, Sub, Transpose,
        # Conv, Relu, LRN, MaxPool, Reshape by a constant, Gemm, GlobalAveragePool, Flatten, Softmax and (De)QuantizeLinear have
        # CUDA kernels, and there is no Shape node, which ONNX Runtime puts on the CPU on purpose.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if provider == "cuda":
            # Of int8 files all is fake quantisation there, and int32 biases have no CUDA kernel: this folds what is
            # constant into float32.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
    session, failure = None, None
    with (
        quiet_stderr() as said,
        contextlib.redirect_stdout(None),
    ):  # the reasons go to both, and are given below
        if provider != "cpu":
            ort.preload_dlls()  # those that the extra `gpu` installed, which the system's loader does not find
        try:
            # Without its own fallback, which takes the CPU where a provider fails, even in the middle of a run.
            session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no common base
            failure = error
    if session is not None and wanted in session.get_providers():
        return session, ""
    reason = _not_loaded(f"{said[0]}\n{failure or ''}")
    if failure is not None and (provider == "cpu" or not reason):
        raise failure
    return None, reason or "it gives no reason"


def _not_loaded(said: str) -> str:
    """Why a provider did not load, from what ONNX Runtime said; "" where it does not say so."""
    if library := re.search(r"(\S+): cannot open shared object file", said):
        return f"{library[1]}{' (the NVIDIA driver)' if library[1] == 'libcuda.so.1' else ''} is missing"
    if failed := re.search(
        r"(CUDA|CUDNN|CUBLAS) (failure|error) \d+: [^;\n]*", said, re.IGNORECASE
    ):
        return failed[0].strip()
    if failed := re.search(r"(Failed to (?:load library|create) [^\n]*)", said):
        return failed[1].strip()[:200]
    return ""


def bound(session: Any, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """`session.run` by way of memory of a device (cpu, cuda), kept for as long as the images' shape stays the same.

    Takes uint8 images `[N, H, W, C]` and gives float32 `[N, classes]`, or features; calls from several threads take turns.
    """
    from onnxruntime import OrtValue

    (details,), (output,) = session.get_inputs(), session.get_outputs()
    binding, turn = session.io_binding(), threading.Lock()
    given = answer = None

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal given, answer
        with turn:
            if given is None or tuple(given.shape()) != images.shape:
                # ortvalue_from_numpy would, on a CPU, be the caller's array, and the next batch be written into that.
                given = OrtValue.ortvalue_from_shape_and_type(images.shape, np.uint8, device)
                answer = OrtValue.ortvalue_from_shape_and_type(
                    (len(images), output.shape[-1]), np.float32, device
                )
                binding.bind_ortvalue_input(details.name, given)
                binding.bind_ortvalue_output(output.name, answer)
            given.update_inplace(np.ascontiguousarray(images))
            session.run_with_iobinding(binding)
            return np.array(answer.numpy())

    return run
