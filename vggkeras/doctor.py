"""What this machine has and what really loads: `python -m vggkeras doctor`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggkeras.processor import this_processor
from vggkeras.runtimes import onnx, providers
from vggkeras.terminal import load_tensorflow, print_table

PACKAGES = (
    "vggkeras",
    "keras",
    "tensorflow",
    "tensorflow-datasets",
    "tf2onnx",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-cu13",
    "ai-edge-litert",
    "jax",
    "numpy",
    "pillow",
    "py-cpuinfo",
    "safetensors",
    "torch",
    "keras-hub",
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
    loads.add_row(
        "tensorflow",
        "gpu",
        ", ".join(gpus) or "no",
        "" if gpus else escape(providers.INSTALL["cuda"]),
    )
    broken = False
    for provider, reason in _onnxruntime_providers().items():
        broken |= provider == "cpu" and bool(reason)
        advice = (
            escape(providers.INSTALL.get(provider, "pip install onnxruntime")) if reason else ""
        )
        device = f"{provider} ({providers.ONNX_PROVIDERS[provider]})"
        loads.add_row("onnxruntime", device, escape(f"no: {reason}") if reason else "yes", advice)
    try:
        from ai_edge_litert.interpreter import Interpreter  # noqa: F401
    except ImportError as error:
        broken = True
        loads.add_row("litert", "cpu", f"no: {error}", "pip install ai-edge-litert")
    else:
        loads.add_row("litert", "cpu", "yes", "")
    print_table(loads, console)
    console.print(f"processor: {this_processor()}", soft_wrap=True, markup=False)
    console.print(
        f"Keras backend: {os.environ.get('KERAS_BACKEND', 'tensorflow')} (KERAS_BACKEND chooses)"
    )
    console.print(
        f"TFDS_DATA_DIR: {os.environ.get('TFDS_DATA_DIR', 'not set, so ~/tensorflow_datasets')}"
    )
    return int(broken)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _onnxruntime_providers() -> dict[str, str]:
    """Why each provider does not load, "" for those that do: ONNX Runtime lists those too that it cannot load."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    probe = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()
    reasons = {}
    for provider in providers.PROVIDERS:
        try:
            _, reasons[provider] = onnx.onnx_session(probe, provider)
        except (
            Exception
        ) as error:  # onnxruntime's errors have no common base; not loading is the answer
            reasons[provider] = " ".join(str(error).split())[:200] or type(error).__name__
    return reasons
