"""Load SavedModel folders in TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vggkeras.card import form_of
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import check_takes_bytes, forms_beside, smallest_shape
from vggkeras.runtimes.operators import check_operators
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import (
    Options,
    check_tensorflow_gpu,
    tensorflow_device,
    tensorflow_threads,
)
from vggkeras.runtimes.seal import card_of


def load(path: Path, options: Options) -> Predictor:
    """Return a predictor over a SavedModel folder; see `vggkeras.load`."""
    import tensorflow as tf

    card, sealed = card_of(path, options.verify)
    check_tensorflow_gpu(options.provider)
    threads = tensorflow_threads(options.threads)
    if not options.trust_saved_model:
        check_operators(path)
    try:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures["serving_default"]
    except (tf.errors.OpError, OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be loaded as a SavedModel ({reason}): export it again."
        ) from error
    inputs = function.structured_input_signature[1]
    input_name, images = next(iter(inputs.items()))
    output_name, output = next(iter(function.structured_outputs.items()))
    check_takes_bytes(path, images.dtype == tf.uint8, [list(i.shape) for i in inputs.values()])
    form = form_of(None in images.shape[1:], output_name)
    beside = forms_beside(path, card, lambda file: load(file, options))

    def run(batch: np.ndarray, loaded=loaded) -> np.ndarray:  # a signature holds variables weakly
        with tensorflow_device(options.provider, options.tf32):
            return function(**{input_name: tf.constant(batch)})[output_name].numpy()

    return Predictor(
        path=path,
        runtime="tensorflow",
        version=tf.__version__,
        provider=options.provider,
        input_shape=smallest_shape(path, card) if form.takes_any_size else tuple(images.shape[1:]),
        outputs=output.shape[-1],
        input_name=input_name,
        output_name=output_name,
        card=card,
        run=run,
        form=form,
        make_form=None if form.takes_any_size else beside,
        threads=threads,
        tf32=options.tf32,
        sealed=sealed,
    )
