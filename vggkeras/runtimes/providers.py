"""TODO"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vggkeras.errors import InputError

PROVIDERS = ("cpu", "cuda", "tensorrt")
ONNX_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
INSTALL = {
    "cuda": "pip install 'vggkeras[gpu]' on Linux with an NVIDIA driver",
    "tensorrt": "pip install 'vggkeras[gpu]' 'tensorrt-cu13<11', its folder tensorrt_libs on LD_LIBRARY_PATH",
}
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries read it once a process; 0 forbids TF32


def check_tensorflow_gpu(provider: str) -> None:
    import tensorflow as tf

    if provider == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            f"provider cuda: TensorFlow sees no GPU here: {INSTALL['cuda']}, or use cpu "
            "(`python -m vggkeras doctor` says what loads)."
        )


def tensorflow_threads(threads: int | None) -> int:
    """Set and return how many threads TensorFlow's operations have; they are fixed once it has started."""
    import tensorflow as tf

    has = tf.config.threading.get_intra_op_parallelism_threads()  # 0: one for every core
    wanted = threads or has or cores()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(wanted)
    except RuntimeError as error:
        if wanted != (has or cores()):
            raise InputError(
                f"{threads} threads: TensorFlow has started in this process with {has or cores()}, which is then fixed: "
                "load the model before anything else uses TensorFlow, or in a process of its own."
            ) from error
    return wanted


def cores() -> int:
    return os.cpu_count() or 1


@contextlib.contextmanager
def tensorflow_device(provider: str, tf32: bool) -> Iterator[None]:
    """Compute on a device; on a GPU with or without TF32, which is the process' and is put back afterwards."""
    import tensorflow as tf

    if provider == "cpu":
        with tf.device("/CPU:0"):
            yield
        return
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        with tf.device("/GPU:0"):
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
