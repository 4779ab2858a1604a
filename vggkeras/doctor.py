"""What this machine has and what really loads: `python -m vggkeras doctor`."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from vggkeras.terminal import load_tensorflow, print_table, quiet_stderr

PACKAGES = (
    "vggkeras",
    "keras",
    "tensorflow",
    "tensorflow-datasets",
    "tf2onnx",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "ai-edge-litert",
    "jax",
    "numpy",
    "pillow",
)


def examine(console: Console) -> int:
    """Print versions, devices and what loads. Returns 0, or 1 when a runtime that is installed does not load."""
    table = Table(
        title=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    table.add_column("package")
    table.add_column("version")
    for package in PACKAGES:
        table.add_row(package, _version(package) or "not installed")
    console.print(table)

    loads = Table(title="What really loads")
    loads.add_column("runtime")
    loads.add_column("device")
    loads.add_column("loads")
    loads.add_column("otherwise")
    load_tensorflow(console)
    import tensorflow as tf

    gpus = [device.name for device in tf.config.list_physical_devices("GPU")]
    loads.add_row("tensorflow", "cpu", "yes", "")
    gpu_extra = "pip install 'vggkeras\\[gpu]' on Linux with an NVIDIA driver"
    loads.add_row("tensorflow", "gpu", ", ".join(gpus) or "no", "" if gpus else gpu_extra)
    broken = False
    for provider, loaded in _onnxruntime_providers().items():
        broken |= provider == "CPUExecutionProvider" and not loaded
        loads.add_row("onnxruntime", provider, "yes" if loaded else "no", "" if loaded else gpu_extra)
    try:
        from ai_edge_litert.interpreter import Interpreter  # noqa: F401
    except ImportError as error:
        broken = True
        loads.add_row("litert", "cpu", f"no: {error}", "pip install ai-edge-litert")
    else:
        loads.add_row("litert", "cpu", "yes", "")
    print_table(loads, console)
    console.print(f"Keras backend: {os.environ.get('KERAS_BACKEND', 'tensorflow')} (KERAS_BACKEND chooses)")
    console.print(f"TFDS_DATA_DIR: {os.environ.get('TFDS_DATA_DIR', 'not set, so ~/tensorflow_datasets')}")
    return int(broken)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _onnxruntime_providers() -> dict[str, bool]:
    """Whether each provider that ONNX Runtime was built with loads: it says it is available even where it is not."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    loads = {}
    for provider in ort.get_available_providers():
        try:
            with quiet_stderr(), contextlib.redirect_stdout(None):  # the table says it
                session = ort.InferenceSession(probe, providers=[provider])
            loads[provider] = provider in session.get_providers()
        except Exception:  # onnxruntime's errors have no common base; not loading is the answer
            loads[provider] = False
    return loads
