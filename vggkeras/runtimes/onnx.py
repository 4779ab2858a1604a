"""Load .onnx files in ONNX Runtime, on a CPU or wholly on a GPU."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.card import ModelCard, form_of
from vggkeras.errors import InputError
from vggkeras.runtimes import tensorrt
from vggkeras.runtimes.forms import check_takes_bytes, forms_beside, smallest_shape
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import INSTALL, ON_CPU, ONNX_PROVIDERS, Options, cores
from vggkeras.runtimes.seal import card_of
from vggkeras.runtimes.stderr import quiet_stderr


class ProviderNotLoadedError(Exception):
    """ONNX Runtime cannot load a provider here; the message says why."""


def load(path: Path, options: Options, *, optimize: bool = True) -> Predictor:
    """Return a predictor over an .onnx file; see `vggkeras.load`."""
    import onnxruntime as ort

    card, sealed = card_of(path, options.verify)
    any_size = path.stem.endswith((".dense", ".dense_boxes", ".features"))
    check_batch_sizes(path, card, options)
    engine: dict[str, str] = {}
    if options.provider == "tensorrt":
        tensorrt.check(path, card)
        engine = tensorrt.engine_options(path, card, options)
    try:
        session = onnx_session(
            str(path), options, any_size=any_size, optimize=optimize, engine=engine
        )
    except Exception as error:  # onnxruntime's errors have no common base
        raise InputError(_cannot_load(path, options.provider, error)) from error
    images, output = session.get_inputs()[0], session.get_outputs()[0]
    check_takes_bytes(path, "uint8" in images.type, [i.shape for i in session.get_inputs()])
    form = form_of(any(isinstance(side, str) for side in images.shape[1:]), output.name)
    beside = forms_beside(path, card, lambda file: load(file, options))

    def run_plainly(batch: np.ndarray) -> np.ndarray:
        return session.run([output.name], {images.name: np.ascontiguousarray(batch)})[0]

    return Predictor(
        path=path,
        runtime="onnxruntime",
        version=ort.__version__,
        provider=options.provider,
        input_shape=smallest_shape(path, card) if form.takes_any_size else tuple(images.shape[1:]),
        outputs=output.shape[-1],
        input_name=images.name,
        output_name=output.name,
        card=card,
        # `bound` knows the shape of one answer an image, and not that of a map of boxes.
        run=run_plainly
        if options.provider == "cpu" or len(output.shape) != 2
        else _run_on_gpu(session, options),
        form=form,
        make_form=None if form.takes_any_size else beside,
        threads=options.threads or cores(),
        tf32=options.tf32,
        sealed=sealed,
    )


def check_batch_sizes(path: Path, card: ModelCard, options: Options) -> None:
    """Raise InputError where batches cannot be prepared for: images of any size, or unknown."""
    if options.batch_sizes and (card.form.takes_any_size or card.input_shape is None):
        received = "takes images of any size" if card.input_shape else "does not say what it takes"
        raise InputError(
            f"batch sizes need a classifier of `python -m export`, of images of one size; {path} "
            f"{received}: leave them out; an engine is then built for every new size."
        )


def _run_on_gpu(session: Any, options: Options) -> Callable[[np.ndarray], np.ndarray]:
    run = bound(session, "cuda")
    return in_batches_of(options.batch_sizes, run) if options.batch_sizes else run


def load_unoptimized(path: str | os.PathLike) -> Predictor:
    """Load a .onnx file on the CPU without any optimization of its graph.

    An int8 file then computes everything in float32 between quantized values, which is what its
    integers should give.
    """
    return load(Path(path), Options(verify=False), optimize=False)


def onnx_session(
    model: str | bytes,
    options: Options = ON_CPU,
    *,
    any_size: bool = False,
    optimize: bool = True,
    engine: Mapping[str, str] | None = None,
) -> Any:
    """Return a session of ONNX Runtime all of whose operations run on one provider.

    Args:
        model: the file's path, or its bytes.
        options: where and how it computes.
        any_size: whether the images have another size every call.
        optimize: fuse operations, and compute in integers what is quantized.
        engine: options of TensorRT, from `tensorrt.engine_options`.

    Raises:
        ProviderNotLoadedError: the provider is not there, or does not load.
        Exception: whatever ONNX Runtime raises for a file that it cannot run, or not wholly on
            this provider.
    """
    import onnxruntime as ort

    provider = ONNX_PROVIDERS[options.provider]
    if provider not in ort.get_available_providers():
        raise ProviderNotLoadedError(
            f"this build of it has {', '.join(ort.get_available_providers())}"
        )
    settings = _session_options(options, any_size, optimize)
    session, failure = None, None
    # The reasons go to stderr and stdout, and are given below.
    with quiet_stderr() as printed, contextlib.redirect_stdout(None):
        if options.provider != "cpu":
            ort.preload_dlls()  # of the extra gpu-serve, which the system's loader does not find
        asked = _providers(options, any_size, engine or {})
        try:
            # Its own fallback would take the CPU where a provider fails, even in a run's middle.
            session = ort.InferenceSession(model, settings, providers=asked, enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no common base
            failure = error
    if session is not None and provider in session.get_providers():
        return session
    reason = _why_not_loaded(f"{printed[0]}\n{failure or ''}")
    if failure is not None and (options.provider == "cpu" or not reason):
        raise failure
    raise ProviderNotLoadedError(reason or "it gives no reason")


def _session_options(options: Options, any_size: bool, optimize: bool) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads or cores(), 1
    settings.enable_mem_pattern = not any_size  # its plan of memory is for one shape
    # TensorRT optimizes the graph itself, and takes a quantized one as it was written: ONNX Runtime
    # would quantize its biases to int32, which TensorRT cannot dequantize.
    if not optimize or options.provider == "tensorrt":
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if options.provider != "cpu":
        # Creating the session then fails where any operation is left to the CPU. Ours leave none:
        # Cast, Sub, Transpose, Conv, Relu, LRN, MaxPool, Reshape by a constant, Gemm,
        # GlobalAveragePool, Flatten, Softmax and (De)QuantizeLinear have CUDA kernels, and there is
        # no Shape node, which ONNX Runtime puts on the CPU on purpose.
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if options.provider == "cuda":
        # CUDA computes int8 files in float32, and has no kernel for int32 biases: this folds what
        # is constant into float32.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def _providers(options: Options, any_size: bool, engine: Mapping[str, str]) -> list[Any]:
    if options.provider == "cpu":
        return [ONNX_PROVIDERS["cpu"]]
    cuda = (ONNX_PROVIDERS["cuda"], cuda_options(options, any_size))
    if options.provider == "cuda":
        return [cuda]
    return [(ONNX_PROVIDERS["tensorrt"], dict(engine)), cuda]  # for what TensorRT cannot run


def cuda_options(options: Options, any_size: bool) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider."""
    cuda = {"use_tf32": str(int(options.tf32))}
    if any_size:  # the default tries every algorithm at every new size
        cuda["cudnn_conv_algo_search"] = "HEURISTIC"
    # Every call is then of one shape, in memory that `bound` keeps.
    if options.provider == "cuda" and len(options.batch_sizes) == 1:
        cuda["enable_cuda_graph"] = "1"
    return cuda


def _why_not_loaded(printed: str) -> str:
    """Return why a provider did not load, from what ONNX Runtime printed; "" if it does not say."""
    if library := re.search(r"(\S+): cannot open shared object file", printed):
        driver = " (the NVIDIA driver)" if library[1] == "libcuda.so.1" else ""
        return f"{library[1]}{driver} is missing"
    failure = r"(CUDA|CUDNN|CUBLAS) (failure|error) \d+: [^;\n]*"
    if failed := re.search(failure, printed, re.IGNORECASE):
        return failed[0].strip()
    if failed := re.search(r"(Failed to (?:load library|create) [^\n]*)", printed):
        return failed[1].strip()[:200]
    return ""


def _cannot_load(path: Path, provider: str, error: Exception) -> str:
    """Return the message for an error of `onnx_session`."""
    import onnxruntime as ort

    if isinstance(error, ProviderNotLoadedError):
        return (
            f"provider {provider}: ONNX Runtime {ort.__version__} did not load "
            f"{ONNX_PROVIDERS[provider]}: {error}. Needed: {INSTALL[provider]}; or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )
    if "fallback to CPU EP" in str(error):
        return (
            f"provider {provider}: a part of {path} would run on the CPU, as ONNX Runtime cannot "
            "run it there: use cpu, or export the model again."
        )
    return f"{path} cannot be loaded by ONNX Runtime ({str(error)[:300]}): export it again."


def in_batches_of(
    sizes: Sequence[int], run: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that calls another with batches of these sizes alone.

    Images beyond the largest size go into another batch; the last batch is filled up with zeros to
    the next size, and the answers to these are dropped.
    """
    sizes = sorted(sizes)

    def run_in_batches(images: np.ndarray) -> np.ndarray:
        answers = []
        for start in range(0, len(images), sizes[-1]):
            part = images[start : start + sizes[-1]]
            size = next(size for size in sizes if size >= len(part))
            filled = np.zeros((size, *part.shape[1:]), part.dtype)
            filled[: len(part)] = part
            answers.append(run(filled)[: len(part)])
        return np.concatenate(answers)

    return run_in_batches


def bound(session: Any, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return `session.run` by way of memory of a device (cpu, cuda).

    The memory is kept for as long as the images' shape stays the same. The function takes uint8
    images `[N, H, W, C]` and returns float32 `[N, classes]`, or features; calls from several
    threads take turns.
    """
    from onnxruntime import OrtValue

    (image_info,), (output_info,) = session.get_inputs(), session.get_outputs()
    binding, lock = session.io_binding(), threading.Lock()
    images_value = output_value = None

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal images_value, output_value
        with lock:
            if images_value is None or tuple(images_value.shape()) != images.shape:
                # ortvalue_from_numpy would, on a CPU, be the caller's array, into which the next
                # batch would be written.
                make = OrtValue.ortvalue_from_shape_and_type
                images_value = make(images.shape, np.uint8, device)
                output_value = make((len(images), output_info.shape[-1]), np.float32, device)
                binding.bind_ortvalue_input(image_info.name, images_value)
                binding.bind_ortvalue_output(output_info.name, output_value)
            images_value.update_inplace(np.ascontiguousarray(images))
            session.run_with_iobinding(binding)
            return np.array(output_value.numpy())

    return run
