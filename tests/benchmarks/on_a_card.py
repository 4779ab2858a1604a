"""Measure configuration D on a GPU: ONNX Runtime's inference, and training in JAX and in PyTorch.

    python tests/benchmarks/on_a_card.py
    python tests/benchmarks/on_a_card.py --provider cpu --width 0.0625 --image-size 32 --batch 4

The second command needs no card, and only shows that the program works. Needed: the extra
gpu-serve, jax[cuda13] and torch with CUDA 13, in one environment; what is missing is an error.

Inference: model.onnx in ONNX Runtime, float32 with and without TF32, float16, and that as a CUDA
graph, of 1 and of 64 images, in turn. Training: images/s of bfloat16 steps on a batch in memory,
Keras on JAX against the same network in PyTorch (channels last, compiled), in processes of their
own that take turns, and the share that this is of the peak of a bfloat16 product of two square
matrices in the same process. A step counts as three forward passes. Keras' loss is waited for at
every step, as training does, PyTorch's at the end.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

CLASSES = 1000
STEPS = 10  # of training, or products of matrices, that are timed together
TWINS = Path(__file__).parents[1] / "weights"  # where the network is written down in PyTorch


@dataclass(frozen=True)
class Arguments:
    """Measure D on a card."""

    provider: Literal["cuda", "cpu"] = "cuda"
    width: float = 1.0
    """Multiplies the number of filters and of units."""
    image_size: int = 224
    batch: int = 256
    """Images a training step."""
    batches: tuple[int, ...] = (1, 64)
    """Images a call of ONNX Runtime."""
    rounds: int = 3
    part: Literal["all", "inference", "jax", "torch"] = "all"
    """Which to run here; all starts a process for each."""

    @property
    def units(self) -> int:
        """The units of fc1 and fc2."""
        return round(4096 * self.width)

    @property
    def side(self) -> int:
        """The side of the matrices whose product is the peak."""
        return 8192 if self.provider == "cuda" else 256


def seconds(run: Callable[[], object], wait: Callable[[object], object], count: int) -> float:
    """Return the seconds of a call, over several after one; `wait` blocks until a result is there.

    Calls that a card only queues are waited for once, at the end.
    """
    wait(run())
    start = time.perf_counter()
    for _ in range(count):
        result = run()
    wait(result)
    return (time.perf_counter() - start) / count


def inference(given: Arguments) -> list[dict]:
    """Return ms a call of every file, setting and batch, and how far answers are from float32's."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import numpy as np

    import vggkeras
    from export import artifact, to_onnx, to_saved_model
    from vggkeras.card import ModelCard
    from vggkeras.runtimes.keras import keras_predictor

    side = given.image_size
    network = vggkeras.build(
        "D", (side, side, 3), CLASSES, width=given.width, fc_units=given.units, seed=0
    )
    reference = keras_predictor(network, ModelCard())
    graph = to_saved_model.inference_model(network)
    settings = [("float32", False, ()), ("float32", True, ()), ("float16", False, ())]
    graphs = given.provider == "cuda"
    shown = np.random.default_rng(0).integers(0, 256, (max(given.batches), side, side, 3), np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("float32", "float16")}
        for name, path in paths.items():
            card = artifact.describe(ModelCard(), reference, "", precision=name)
            to_onnx.write(graph, path, card)
        for batch in given.batches:
            images = shown[:batch]
            asked = [*settings, *([("float16", False, (batch,))] if graphs else [])]
            loaded = [
                vggkeras.load(paths[name], given.provider, tf32=tf32, batch_sizes=sizes)
                for name, tf32, sizes in asked
            ]
            answers = [predictor(images) for predictor in loaded]
            times: list[list[float]] = [[] for _ in loaded]
            for _ in range(given.rounds):
                for predictor, measured in zip(loaded, times, strict=True):
                    call = functools.partial(predictor, images)
                    measured.append(seconds(call, lambda result: result, STEPS))
            for (name, tf32, sizes), answer, measured in zip(asked, answers, times, strict=True):
                difference = float(np.abs(answer - answers[0]).max())
                name += ", CUDA graph" * len(sizes)
                row = {"precision": name, "tf32": tf32, "batch": batch, "difference": difference}
                rows.append(row | {"seconds": statistics.median(measured)})
    return rows


def train_jax(given: Arguments) -> dict:
    """Return the seconds of a training step, and of a product of matrices, in JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import jax.numpy as jnp
    import numpy as np
    import tensorflow as tf

    import vggkeras
    from vggkeras.recipe import Recipe
    from vggkeras.training.benchmark import _train
    from vggkeras.training.optimizer import compile_model

    tf.config.set_visible_devices([], "GPU")  # the card is JAX' alone
    found = jax.default_backend()
    if found != {"cuda": "gpu", "cpu": "cpu"}[given.provider]:
        raise SystemExit(f"JAX computes on {found}, not {given.provider}: install jax[cuda13]")
    recipe = Recipe("D", batch_size=given.batch, precision="mixed_bfloat16")
    shape = (given.image_size, given.image_size, 3)
    sizes = {"width": given.width, "fc_units": given.units, "precision": recipe.precision}
    model = vggkeras.build("D", shape, CLASSES, **sizes, seed=0)
    compile_model(model, recipe)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (given.batch, *shape), np.uint8)
    labels = rng.integers(0, CLASSES, given.batch)
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    timing = _train(model, batches, STEPS, given.batch)
    matrix = jnp.ones((given.side, given.side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    peak = seconds(lambda: product(matrix, matrix), jax.block_until_ready, STEPS)
    card = jax.devices()[0].device_kind
    return {"seconds": timing.seconds / STEPS, "peak": peak, "version": jax.__version__} | {
        "card": card
    }


def train_torch(given: Arguments) -> dict:
    """Return the seconds of a training step, and of a product of matrices, in PyTorch."""
    import torch

    sys.path.insert(0, str(TWINS))
    from twins import Torchvision

    if given.provider == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU: install torch with CUDA")
    device, side = torch.device(given.provider), given.image_size
    wait = torch.cuda.synchronize if given.provider == "cuda" else lambda: None
    torch.manual_seed(0)
    network = Torchvision("vgg16", given.width, given.units, CLASSES, side // 32)
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.9, weight_decay=5e-4)
    images = torch.rand(given.batch, 3, side, side, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (given.batch,), device=device)
    compiled = torch.compile(network) if given.provider == "cuda" else network

    def step() -> object:
        optimizer.zero_grad()
        with torch.autocast(given.provider, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for _ in range(2):
        step()
    taken = seconds(step, lambda _: wait(), STEPS)
    matrix = torch.ones(given.side, given.side, dtype=torch.bfloat16, device=device)
    peak = seconds(lambda: matrix @ matrix, lambda _: wait(), STEPS)
    return {"seconds": taken, "peak": peak, "version": torch.__version__}


def in_a_process(part: str) -> object:
    """Return what a part measured, in a process of its own; its own words go to stderr."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{part} ended with code {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


def print_all(given: Arguments) -> None:
    """Measure every part, and print two tables."""
    from vggkeras import configs

    console = Console(width=120)
    table = Table(title=f"ONNX Runtime, {given.provider}: D at {given.image_size} px")
    for column in ("file", "TF32", "images a call", "ms a call", "images/s", "largest difference"):
        table.add_column(column, justify="right")
    for row in in_a_process("inference"):
        speed = row["batch"] / row["seconds"]
        figures = f"{1e3 * row['seconds']:.2f}", f"{speed:.0f}", f"{row['difference']:.1e}"
        table.add_row(row["precision"], str(row["tf32"]), str(row["batch"]), *figures)
    console.print(table)
    shape = (given.image_size, given.image_size, 3)
    plan = configs.plan("D", shape, CLASSES, width=given.width, fc_units=given.units)
    operations = 3 * 2 * sum(layer.multiply_adds for layer in plan) * given.batch
    measured = {"jax": [], "torch": []}
    for _ in range(given.rounds):
        for part, rounds in measured.items():
            rounds.append(in_a_process(part))
    table = Table(title=f"Training D in bfloat16, {given.batch} images a step")
    for column in ("", "images/s", "TFLOP/s", "peak TFLOP/s", "share of peak"):
        table.add_column(column, justify="right")
    speeds = {}
    for part, rounds in measured.items():
        taken = statistics.median(each["seconds"] for each in rounds)
        peak = 2 * given.side**3 / min(each["peak"] for each in rounds)
        speeds[part], rate = given.batch / taken, operations / taken
        figures = f"{speeds[part]:.0f}", f"{rate / 1e12:.3g}", f"{peak / 1e12:.3g}"
        name = f"{part} {rounds[0]['version']}"
        table.add_row(name, *figures, f"{rate / peak:.0%}")
    console.print(table)
    ratios = [
        torch["seconds"] / jax["seconds"]
        for jax, torch in zip(measured["jax"], measured["torch"], strict=True)
    ]
    low, high = min(ratios), max(ratios)
    print(f"{measured['jax'][0]['card']}; {given.rounds} rounds")
    print(
        f"JAX trains {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}] x PyTorch's images/s"
    )


def main() -> None:
    """Run all parts, or one of them, whose figures are its last line."""
    given = tyro.cli(Arguments)
    parts = {"inference": inference, "jax": train_jax, "torch": train_torch}
    if given.part == "all":
        print_all(given)
    else:
        print(json.dumps(parts[given.part](given)))


if __name__ == "__main__":
    main()
