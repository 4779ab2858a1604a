"""Photographs of 12 megapixels, decoded whole and reduced: speed, pixels, and accuracy.

    TFDS_DATA_DIR=… python tests/benchmarks/large_photographs.py --work large

Photographs of Imagenette are enlarged and stored as phones do: 4032 x 3024 px, color at half the
resolution, quality 90, a third of them sideways by EXIF; once as they are, and once with grain,
which makes files as large as those of phones. Everything that is compared is measured in turn, in
images for a second of one core, which other work on the machine does not change much.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/export would hide export

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from textures import grating, jpeg, textures

import vggkeras
from vggkeras import files
from vggkeras.data import augment, decoding, sources, statistics, windows
from vggkeras.data.splits import Split
from vggkeras.evaluation.statistics import mcnemar
from vggkeras.training.benchmark import photograph_like

console = Console(width=120)
PHONE = (4032, 3024)  # width and height, px
GRAIN = 5  # levels, standard deviation
CROP, SCALES = 224, ((256, 256), (256, 512))
GAPS = (10, 20, 29, 40)  # tenths
TEXTURE = 64  # S of textures, px
PERIODS = np.arange(2.05, 5, 0.05)  # px, of gratings
PLAIN = "500 x 375 px"


@dataclass(frozen=True)
class Arguments:
    """Measure what decoding large photographs reduced brings, and what it changes."""

    work: Path
    """Folder for images and runs; what is made there is removed at the end."""
    data: str = "tfds:imagenette/160px-v2"
    """Its photographs are enlarged."""
    parts: tuple[Literal["speed", "profile", "pixels", "accuracy"], ...] = (
        "speed",
        "profile",
        "pixels",
        "accuracy",
    )
    """What is measured."""
    photographs: int = 16
    """Of 12 megapixels."""
    images: int = 32
    """Read through each pipeline, a round."""
    rounds: int = 3
    """How often everything is measured in turn."""
    trained: int = 1000
    """Photographs to train on."""
    tested: int = 1000
    """Photographs to compare accuracy on."""
    trained_side: int = 1700
    """Their smallest side, px: reduced by 8 at 64 px."""
    epochs: int = 10
    """Of each training."""
    seeds: int = 5
    """Of the trainings: two of each."""
    json: Path | None = None
    """Write the figures to this file too."""


def enlarged(split: Split, count: int, size: tuple[int, int], grain: float) -> Iterator[tuple]:
    """Yield (JPEG, label) of evenly spaced photographs, enlarged to `size` (width, height)."""
    chance = np.random.default_rng(0)
    wanted = set(np.linspace(0, split.count - 1, count).astype(int).tolist())
    for i, (_, encoded, label) in enumerate(split.examples()):
        if i not in wanted:
            continue
        image = Image.fromarray(decoding.decode(encoded)).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        if grain:
            noise = grain * chance.standard_normal((*pixels.shape[:2], 1), np.float32)
            pixels = (pixels + noise).clip(0, 255).astype(np.uint8)
        yield jpeg(pixels, (1, 6, 1)[i % 3]), label


def held(name: str, examples: Iterator[tuple]) -> Split:
    """Return examples as a split in memory."""
    encoded, labels = zip(*examples, strict=True)
    return Split(name, len(encoded), np.array(labels, np.int64), list(encoded), exif=True)


def cropped(split: Split, scale: tuple[int, int], fast: bool, count: int):
    """Return a tf.data.Dataset of the training crops of `count` images, one at a time."""

    def crop(epoch, index, encoded, label):
        uniform, _ = augment.draws(0, epoch, index)
        return augment.random_crop(encoded, CROP, scale, uniform, True, split.exif, fast)

    return split.shuffled(0).take(count).map(crop)


def speeds(sets: dict[str, Split], arguments: Arguments) -> list[dict]:
    """Measure the crops of every set, and the first pass over it, whole and reduced in turn."""
    totals: dict[tuple, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, split in sets.items():
            for fast in (False, True):
                for low, high in SCALES:
                    crops = iter(cropped(split, (low, high), fast, arguments.images + 1))
                    next(crops)  # which begins the others
                    start = time.process_time()
                    count = sum(1 for _ in crops)
                    total = totals.setdefault((name, f"crops, S {low} to {high}", fast), [])
                    total.append((time.process_time() - start) / count)
                start = time.process_time()
                count = sum(1 for _ in statistics.read_all(split, fast=fast))
                total = totals.setdefault((name, "first pass", fast), [])
                total.append((time.process_time() - start) / count)
    rows = []
    for name, part, fast in totals:
        if fast:
            continue
        whole, reduced = (np.array(totals[name, part, f]) for f in (False, True))
        ratios = whole / reduced
        rows.append(
            {
                "photographs": name,
                "part": part,
                "whole": 1 / whole.mean(),
                "reduced": 1 / reduced.mean(),
                "ratio": float(whole.mean() / reduced.mean()),
                "least": float(ratios.min()),
                "most": float(ratios.max()),
            }
        )
    return rows


def profile(sets: dict[str, Split], arguments: Arguments) -> list[dict]:
    """Measure what a crop at S 256 consists of, in milliseconds of one core, in turn.

    Decoding at 1/8 reads every code of the file and computes a 64th of the pixels, so it is a
    bound of what reading the codes takes.
    """
    import tensorflow as tf

    def window(fast: bool, exif: bool):
        def decode(epoch, index, encoded, label):
            uniform, _ = augment.draws(0, epoch, index)

            def place_of(size):
                return augment._place(size, CROP, SCALES[0], uniform)

            return windows.pixels_of_jpeg(encoded, place_of, exif, fast)[0]

        return decode

    rows = []
    for name, split in sets.items():
        for fast in (False, True) if name != PLAIN else (False,):
            examples = split.shuffled(0).take(arguments.images + 1)
            each = {
                "crop": cropped(split, SCALES[0], fast, arguments.images + 1),
                "decoding": examples.map(window(fast, split.exif)),
                "codes": examples.map(lambda *e: tf.io.decode_jpeg(e[2], ratio=8)),
                "nothing": examples.map(lambda *e: e[3]),
            }
            total = dict.fromkeys(each, 0.0)
            for _ in range(arguments.rounds):
                for part, dataset in each.items():
                    iterator = iter(dataset)
                    next(iterator)
                    start = time.process_time()
                    count = sum(1 for _ in iterator)
                    total[part] += 1e3 * (time.process_time() - start) / count / arguments.rounds
            spent = {part: ms - total["nothing"] for part, ms in total.items() if part != "nothing"}
            rows.append({"photographs": name, "decoded": "reduced" if fast else "whole", **spent})
    return rows


def changed(data: bytes, side: int, crop: int) -> np.ndarray:
    """Return by how many levels the central crop differs."""
    import tensorflow as tf

    uniform = tf.constant([0, 0.5, 0.5, 0.9])
    how = (crop, (side, side), uniform, False, True)
    both = [augment.random_crop(tf.constant(data), *how, f).numpy() for f in (False, True)]
    return np.abs(np.subtract(*both, dtype=int))


def differences(images: Iterator[tuple[str, np.ndarray]], factor: int, gap: int) -> dict:
    """Return name -> differences, where images are decoded at 1/`factor` with so small a gap."""
    before = decoding.GAP_TENTHS
    decoding.GAP_TENTHS = windows.GAP_TENTHS = gap
    try:
        return {
            name: changed(jpeg(image, i % 8 + 1), TEXTURE, TEXTURE - 3)
            for i, (name, image) in enumerate(images)
            if decoding.reduction(image.shape[:2], TEXTURE) == factor
        }
    finally:
        decoding.GAP_TENTHS = windows.GAP_TENTHS = before


def sized(gap: int, factor: int) -> tuple[int, int]:
    """Return the smallest (height, width) of a texture that is reduced by `factor`."""
    height = -(-gap * factor * TEXTURE // 10)
    return height, height * 9 // 8


def figures(each: list[np.ndarray]) -> dict[str, float]:
    """Return the mean, the fraction within 8 levels, and the largest of differences."""
    values = np.concatenate([part.ravel() for part in each])
    return {
        "mean": float(values.mean()),
        "within 8": float((values <= 8).mean()),
        "largest": int(values.max()),
    }


def pixels(sets: dict[str, Split]) -> list[dict]:
    """Return how far pixels differ: of textures by gap, each texture, gratings, photographs."""
    rows = []
    for gap in GAPS:
        every = {f: differences(textures(*sized(gap, f)), f, gap) for f in (2, 4)}
        for factor, parts in every.items():
            what = f"textures, gap {gap / 10}, 1/{factor}"
            rows.append({"what": what, **figures(list(parts.values()))})
        if gap == decoding.GAP_TENTHS:
            every[8] = differences(textures(*sized(gap, 8)), 8, gap)
            together = [d for parts in every.values() for d in parts.values()]
            rows.append({"what": f"textures, gap {gap / 10}, all", **figures(together)})
            for name in every[2]:
                rows.append({"what": name, **figures([parts[name] for parts in every.values()])})
            h, w = sized(gap, 2)
            waves = ((f"grating of {p:.2f} px", grating(h, w, p)) for p in PERIODS)
            worst = max(differences(waves, 2, gap).items(), key=lambda item: item[1].mean())
            rows.append({"what": f"worst: {worst[0]}", **figures([worst[1]])})
            y, x = np.mgrid[:h, :w]
            color = np.stack([(x + y) % 2, (x + y + 1) % 2, 0 * x], -1).astype(np.uint8) * 255
            parts = differences(iter([("color", color)]), 2, gap)
            rows.append({"what": "red and green checkerboard", **figures(list(parts.values()))})
    for name, split in sets.items():
        if name != PLAIN:
            for side in (73, 256, 512):
                each = [changed(data, side, side - 32) for _, data, _ in split.examples()]
                rows.append({"what": f"{name}, S {side}", **figures(each)})
    return rows


def accuracy(arguments: Arguments) -> list[dict]:
    """Train A at 64 px on enlarged photographs, decoded whole and reduced; compare by McNemar."""
    data = sources.load_data(arguments.data)
    side = arguments.trained_side
    folder = arguments.work / "photographs"
    for name, count in (("train", arguments.trained), ("validation", arguments.tested)):
        examples = enlarged(data.split(name), count, (side * 4 // 3, side), 0)
        for i, (encoded, label) in enumerate(examples):
            place = folder / name.replace("validation", "val") / f"{label:02}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:05}.jpg").write_bytes(encoded)
    rows = []
    for seed in range(arguments.seeds):
        whole, reduced = (answered_right(folder, fast, seed, arguments) for fast in (False, True))
        gained, lost = int((reduced & ~whole).sum()), int((whole & ~reduced).sum())
        rows.append(
            {
                "seed": seed,
                "whole, %": 100 * float(whole.mean()),
                "reduced, %": 100 * float(reduced.mean()),
                "gained": gained,
                "lost": lost,
                "p": mcnemar(gained, lost),
            }
        )
        show("accuracy", rows)
    return rows


def answered_right(folder: Path, fast: bool, seed: int, arguments: Arguments) -> np.ndarray:
    """Train on photographs, decoded whole or reduced; say which of the others are right."""
    recipe = vggkeras.Recipe(
        "A",
        str(folder),
        image_size=64,
        width=0.25,
        fc_units=256,
        batch_norm=True,
        batch_size=32,
        learning_rate=0.05,
        epochs=arguments.epochs,
        fast_decode=fast,
        seed=seed,
        out=arguments.work / f"run-{fast}-{seed}",
    )
    predictor = vggkeras.load(vggkeras.train(recipe, console).path / "model.keras")
    val = sources.load_data(str(folder)).upright(True).split("validation")
    crops = list(augment.center_crops(val, (64, 64), predictor.scale))
    images = np.stack([crop for _, crop, _ in crops])
    labels = np.array([label for *_, label in crops])
    answers = [predictor(images[i : i + 50]) for i in range(0, len(images), 50)]
    return np.concatenate(answers).argmax(1) == labels


def difference(rows: list[dict]) -> str:
    """Return what reducing changes: the mean over seeds, and its 95% interval (Student's t)."""
    points = [row["reduced, %"] - row["whole, %"] for row in rows]
    mean, half = np.mean(points), np.nan
    if len(points) > 1:
        half = student.ppf(0.975, len(points) - 1) * np.std(points, ddof=1) / len(points) ** 0.5
    return f"reduced - whole: {mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}] points"


def show(title: str, rows: list[dict]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main(arguments: Arguments) -> None:
    """Measure everything, and print it as it comes."""
    arguments.work.mkdir(parents=True)
    result: dict = {"arguments": {k: str(v) for k, v in dataclasses.asdict(arguments).items()}}
    try:
        split = sources.load_data(arguments.data).split("train")
        sets = {PLAIN: photograph_like(60)}
        for name, grain in (("12 MP", 0), ("12 MP with grain", GRAIN)):
            if arguments.parts != ("accuracy",):
                sets[name] = held(name, enlarged(split, arguments.photographs, PHONE, grain))
        sizes = {n: sum(len(d) for _, d, _ in s.examples()) / s.count for n, s in sets.items()}
        result["megabytes"] = {name: size / 1e6 for name, size in sizes.items()}
        console.print(result["megabytes"])
        for name, measure in (
            ("speed", speeds),
            ("profile", profile),
            ("pixels", lambda s, _: pixels(s)),
        ):
            if name in arguments.parts:
                result[name] = measure(sets, arguments)
                show(name, result[name])
        if "accuracy" in arguments.parts:
            result["accuracy"] = accuracy(arguments)
            console.print(difference(result["accuracy"]))
        if arguments.json:
            files.write_json(arguments.json, result)
    finally:
        shutil.rmtree(arguments.work)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
