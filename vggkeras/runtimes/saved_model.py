"""TODO"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, form_of, forms_beside, smallest_shape
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import check_tensorflow_gpu, tensorflow_device, tensorflow_threads


def load(path: Path, provider: str, threads: int | None, tf32: bool) -> Predictor:
    import tensorflow as tf

    check_tensorflow_gpu(provider)
    has = tensorflow_threads(threads)
    try:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures["serving_default"]
    except (tf.errors.OpError, OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be loaded as a SavedModel ({reason}): export it again."
        ) from error
    inputs = function.structured_input_signature[1]
    input_name, spec = next(iter(inputs.items()))
    output_name, output = next(iter(function.structured_outputs.items()))
    check_takes_bytes(path, spec.dtype == tf.uint8, [list(i.shape) for i in inputs.values()])
    described = path / "assets.extra" / "vggkeras.json"
    card = ModelCard()
    if described.exists():
        card = ModelCard.from_json(json.loads(described.read_text(encoding="utf-8")), path)

    def run(
        images: np.ndarray, loaded=loaded
    ) -> np.ndarray:  # the signature holds its variables weakly
        with tensorflow_device(provider, tf32):
            return function(**{input_name: tf.constant(images)})[output_name].numpy()

    def again(file: Path) -> Predictor:
        return load(file, provider, threads, tf32)

    form = form_of(None in spec.shape[1:], output_name)
    return Predictor(
        path,
        "tensorflow",
        tf.__version__,
        provider,
        smallest_shape(path, card) if form.takes_any_size else tuple(spec.shape[1:]),
        output.shape[-1],
        input_name,
        output_name,
        card,
        run,
        form,
        None if form.takes_any_size else forms_beside(path, card, again),
        has,
        tf32,
    )
