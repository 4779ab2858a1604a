"""Say what this machine has and what really loads: `python -m vggkeras doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from vggkeras import nvidia
from vggkeras.processor import this_processor
from vggkeras.runtimes import ENGINES, onnx, providers
from vggkeras.terminal import load_tensorflow, plain, print_table

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
    "mnn",
    "openvino",
    "jax",
    "numpy",
    "pillow",
    "py-cpuinfo",
    "safetensors",
    "torch",
    "keras-hub",
)


class Check(NamedTuple):
    """Whether a runtime loads on a device."""

    runtime: str
    device: str
    loads: str  # yes, the devices' names, or no with the reason
    advice: str = ""  # what to install where it does not
    is_failure: bool = False  # whether it should load on every machine, and does not


def examine(console: Console) -> int:
    """Print versions, devices and what loads.

    Returns:
        0, or 1 when a runtime that is installed does not load.
    """
    console = plain(console)
    console.print(_packages())
    load_tensorflow(console)
    checks = [*_tensorflow(), *_onnxruntime(), _litert(), *_engines()]
    table = Table(title="What really loads")
    for column in ("runtime", "device", "loads", "otherwise"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.runtime, check.device, check.loads, check.advice)
    print_table(table, console)
    if libraries := nvidia.libraries():
        print_table(_owners(libraries), console)
    console.print(f"processor: {this_processor()}", soft_wrap=True)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    console.print(f"Keras backend: {backend} (KERAS_BACKEND chooses)")
    folder = os.environ.get("TFDS_DATA_DIR", "not set, so ~/tensorflow_datasets")
    console.print(f"TFDS_DATA_DIR: {folder}")
    return int(any(check.is_failure for check in checks))


def _packages() -> Table:
    table = Table(
        title=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores"
    )
    table.add_column("package")
    table.add_column("version")
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed")
    return table


def _owners(libraries: Sequence[nvidia.Library]) -> Table:
    """Return a table of CUDA's libraries: which distribution owns the file, or which two do."""
    table = Table(title="Who owns CUDA's libraries")
    for column in ("library", "owned by", "loaded", "otherwise"):
        table.add_column(column)
    for library in libraries:
        table.add_row(
            str(library.path),
            " and ".join(library.owners) or "no Python package",
            "yes" if library.is_loaded else "no",
            _advice(library),
            style="yellow" if len(library.owners) > 1 else None,
        )
    return table


def _advice(library: nvidia.Library) -> str:
    """Return what to do about a library that two distributions own."""
    if len(library.owners) < 2:
        return ""
    return (
        "each overwrote the other's file: make an environment for vggkeras[gpu-train] (TensorFlow) "
        "and one for vggkeras[gpu-serve] (ONNX Runtime), or uninstall all of them and reinstall one"
    )


def _tensorflow() -> list[Check]:
    import tensorflow as tf

    gpus = ", ".join(device.name for device in tf.config.list_physical_devices("GPU"))
    advice = "" if gpus else providers.INSTALL["tensorflow"]
    return [
        Check("tensorflow", "cpu", "yes"),
        Check("tensorflow", "gpu", gpus or "no", advice),
    ]


def _onnxruntime() -> list[Check]:
    """Return a check of each provider: ONNX Runtime lists those too that it cannot load."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opset = helper.make_opsetid("", 18)
    probe = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    checks = []
    for provider, name in providers.ONNX_PROVIDERS.items():
        device = f"{provider} ({name})"
        try:
            onnx.onnx_session(probe, providers.Options(provider))
        except Exception as error:  # onnxruntime's errors have no common base
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            advice = providers.INSTALL.get(provider, "pip install onnxruntime")
            checks.append(Check("onnxruntime", device, f"no: {reason}", advice, provider == "cpu"))
        else:
            checks.append(Check("onnxruntime", device, "yes"))
    return checks


def _litert() -> Check:
    try:
        from ai_edge_litert.interpreter import Interpreter  # noqa: F401
    except ImportError as error:
        return Check("litert", "cpu", f"no: {error}", "pip install ai-edge-litert", True)
    return Check("litert", "cpu", "yes")


def _engines() -> list[Check]:
    """Return a check of each engine that .onnx files may be loaded in instead of ONNX Runtime."""
    checks = []
    for provider, runtime in ENGINES.items():
        advice = providers.INSTALL[provider]
        if importlib.util.find_spec(runtime.package) is None:
            checks.append(Check(provider, "cpu", "no: not installed", advice))
            continue
        module = importlib.import_module(f"vggkeras.runtimes.{runtime.module}")
        try:
            module.import_engine()
        except Exception as error:  # whatever a broken native library raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            checks.append(Check(provider, "cpu", f"no: {reason}", advice, True))
        else:
            checks.append(Check(provider, "cpu", "yes"))
    return checks
