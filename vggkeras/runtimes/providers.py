"""Choose where a model computes: the provider, its CPU threads, and TensorFloat-32."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from vggkeras.errors import InputError
from vggkeras.provider import ON_GPU as ON_GPU
from vggkeras.provider import PROVIDERS as PROVIDERS
from vggkeras.runtimes.predictor import MAX_BATCH

ONNX_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# TensorFlow's CUDA and ONNX Runtime's are of two generations, and share one environment badly.
INSTALL = {
    "tensorflow": "pip install 'vggkeras[gpu-train]' on Linux with an NVIDIA driver",
    "cuda": "pip install 'vggkeras[gpu-serve]' on Linux with an NVIDIA driver",
    "tensorrt": (
        "pip install 'vggkeras[gpu-serve]' 'tensorrt-cu13<11', its folder tensorrt_libs on "
        "LD_LIBRARY_PATH"
    ),
    "mnn": "pip install 'vggkeras[mnn]'",
    "openvino": "pip install 'vggkeras[openvino]'",
}
MOST_THREADS = 64  # or two a core, if they are more: a million would start, and never answer
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries read it once a process; 0 forbids TF32


@dataclass(frozen=True)
class Options:
    """How a model is loaded, and where it computes, as `vggkeras.load` takes it."""

    provider: str = "cpu"  # one of PROVIDERS
    threads: int | None = None  # CPU threads of one operation; None: one for every core
    tf32: bool = False  # whether a GPU may round factors to TensorFloat-32 (10 bits)
    verify: bool = True  # compare a file of vggkeras with its seal first
    trust_saved_model: bool = False  # run a SavedModel whatever its operators do
    batch_sizes: tuple[int, ...] = ()  # that a GPU is prepared for; (): any, none in advance

    def check(self) -> None:
        """Raise InputError for an unknown provider, and for counts that cannot be."""
        if self.provider not in PROVIDERS:
            raise InputError(
                f"provider must be one of {', '.join(PROVIDERS)}; received {self.provider!r}."
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more; received {self.threads}.")
        most = max(MOST_THREADS, 2 * cores())
        if self.threads is not None and self.threads > most:
            raise InputError(f"threads must be {most} or less here; received {self.threads}.")
        self._check_batch_sizes()

    def _check_batch_sizes(self) -> None:
        received = f"received {', '.join(map(str, self.batch_sizes))}."
        if self.batch_sizes and self.provider not in ("cuda", "tensorrt"):
            raise InputError(
                "batch sizes prepare a GPU: expected provider cuda or tensorrt with them; received "
                f"{self.provider}."
            )
        if any(not 1 <= size <= MAX_BATCH for size in self.batch_sizes):
            raise InputError(f"batch sizes must be 1 to {MAX_BATCH}; {received}")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise InputError(f"batch sizes must differ from each other; {received}")

    def check_tf32(self) -> None:
        """Raise InputError where the process' environment forbids or forces TF32 against `tf32`."""
        forbidden = os.environ.get(TF32_OVERRIDE) == "0"
        if self.tf32 and self.provider in ON_GPU and forbidden:
            raise InputError(
                f"tf32 was asked for, and {TF32_OVERRIDE}=0 forbids it: unset it and start again."
            )
        # ONNX Runtime has no option that turns TF32 off in TensorRT.
        if self.provider == "tensorrt" and not self.tf32 and not forbidden:
            raise InputError(
                f"provider tensorrt computes in TF32 unless the environment says {TF32_OVERRIDE}=0 "
                "when the process starts: set it and start again, or load with tf32=True."
            )


ON_CPU = Options()
_TF32 = threading.RLock()


def cores() -> int:
    """Return the number of CPU cores."""
    return os.cpu_count() or 1


def check_tensorflow_gpu(provider: str) -> None:
    """Raise InputError where TensorFlow should compute on a GPU and sees none."""
    import tensorflow as tf

    if provider == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            f"provider cuda: TensorFlow sees no GPU here: {INSTALL['tensorflow']}, or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )


def tensorflow_threads(threads: int | None) -> int:
    """Set and return the threads of TensorFlow's operations; they are fixed once it has started."""
    import tensorflow as tf

    current = tf.config.threading.get_intra_op_parallelism_threads() or cores()  # 0: every core
    wanted = threads or current
    try:
        tf.config.threading.set_intra_op_parallelism_threads(wanted)
    except RuntimeError as error:
        if wanted != current:
            raise InputError(
                f"{threads} threads: TensorFlow has started in this process with {current}, which "
                "is then fixed: load the model before anything else uses TensorFlow, or in a "
                "process of its own."
            ) from error
    return wanted


@contextlib.contextmanager
def tensorflow_device(provider: str, tf32: bool) -> Iterator[None]:
    """Compute on a device.

    TF32, a setting of the whole process, is put back afterwards; on a GPU threads take turns.
    """
    import tensorflow as tf

    if provider == "cpu":
        with tf.device("/CPU:0"):
            yield
        return
    with _TF32:
        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        try:
            with tf.device("/GPU:0"):
                yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)
