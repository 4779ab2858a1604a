"""TODO"""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, form_of, forms_beside
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import cores
from vggkeras.runtimes.stderr import quiet_stderr


def load(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    has = threads or cores()
    try:
        with quiet_stderr():  # it tells of its delegate, every time
            interpreter = Interpreter(str(path), num_threads=has)
            interpreter.allocate_tensors()
        inputs = interpreter.get_input_details()
        details, output = inputs[0], interpreter.get_output_details()[0]
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be loaded by LiteRT ({str(error)[:300]}): export it again."
        ) from error
    check_takes_bytes(path, details["dtype"] == np.uint8, [list(i["shape"]) for i in inputs])
    card = ModelCard()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "vggkeras.json" in archive.namelist():
                card = ModelCard.from_json(json.loads(archive.read("vggkeras.json")), path)
    planned: tuple[int, ...] = ()

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal planned
        if images.shape != planned:
            interpreter.resize_tensor_input(details["index"], images.shape)
            interpreter.allocate_tensors()
            planned = images.shape
        interpreter.set_tensor(details["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    ((_, signature),) = interpreter.get_signature_list().items()
    _, h, w, c = map(int, details["shape"])
    try:
        number = version("ai-edge-litert")
    except PackageNotFoundError:
        number = "unknown"
    input_name, output_name = signature["inputs"][0], signature["outputs"][0]

    def again(file: Path) -> Predictor:
        return load(file, provider, threads, tf32)

    form = form_of(-1 in details["shape_signature"][1:], output_name)
    return Predictor(
        path,
        "litert",
        number,
        "cpu",
        (h, w, c),
        int(output["shape"][-1]),
        input_name,
        output_name,
        card,
        run,
        form,
        None if form.takes_any_size else forms_beside(path, card, again),
        has,
    )
