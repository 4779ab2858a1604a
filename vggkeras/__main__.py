"""python -m vggkeras info | train | benchmark | evaluate | features | report | predict | convert | doctor | demo"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from vggkeras import configs
from vggkeras.errors import InputError, parsed, run_command
from vggkeras.recipe import Recipe
from vggkeras.terminal import load_tensorflow, print_table, progress_bar

SUFFICIENT_ACCURACY = 0.97  # what the demo asks of its digits

console = Console()


def info(
    arch: Annotated[str | None, tyro.conf.Positional] = None,
    image_size: int = 224,
    classes: int = 1000,
) -> int:
    """The paper's Tables 1 and 2: configurations, or one configuration's layers.

    Args:
        arch: A, A-LRN, B, C, D, E or an alias (VGG11, VGG13, VGG16, VGG19); all of them side by side when not given.
        image_size: side of the input, pixels.
        classes: number of classes.
    """
    shape = (image_size, image_size, 3)
    if arch is None:
        _print_configurations(shape, classes)
    else:
        _print_layers(configs.canonical_arch(arch), shape, classes)
    return 0


def _print_configurations(shape: tuple[int, int, int], classes: int) -> None:
    plans = {arch: list(configs.plan(arch, shape, classes)) for arch in configs.CONFIGURATIONS}
    table = Table(
        title=f"Tables 1 and 2 at {shape[0]} px, {classes} classes (conv k-n: k x k kernel, n filters)"
    )
    table.add_column("block")
    for arch in plans:
        table.add_column(arch, justify="center")
    for block in range(5):
        cells = []
        for blocks in configs.CONFIGURATIONS.values():
            cells.append(
                "\n".join(
                    e.upper() if isinstance(e, str) else f"{e[0]}-{e[1]}" for e in blocks[block]
                )
            )
        table.add_row(str(block + 1), *cells, end_section=block == 4)
    aliases = {arch: alias for alias, arch in configs.ALIASES.items()}
    table.add_row("also called", *(aliases.get(arch, "") for arch in plans))
    for title, cell in (
        ("weight layers", lambda plan: str(sum(layer.multiply_adds > 0 for layer in plan))),
        ("parameters", lambda plan: f"{sum(layer.parameters for layer in plan):,}"),
        ("(millions)", lambda plan: f"{sum(layer.parameters for layer in plan) / 1e6:.0f}"),
        ("multiply-adds", lambda plan: f"{sum(layer.multiply_adds for layer in plan) / 1e9:.2f} G"),
        ("activations", lambda plan: f"{_activation_bytes(plan) / 1e6:.0f} MB"),
    ):
        table.add_row(title, *(cell(plan) for plan in plans.values()))
    print_table(table, console)


def _print_layers(arch: str, shape: tuple[int, int, int], classes: int) -> None:
    layers = list(configs.plan(arch, shape, classes))
    table = Table(
        title=f"Configuration {arch} at {shape[0]} px, {classes} classes", show_footer=True
    )
    table.add_column("layer", footer="all")
    table.add_column("kernel")
    for title, footer in (
        ("output", ""),
        ("parameters", f"{sum(layer.parameters for layer in layers):,}"),
        ("multiply-adds", f"{sum(layer.multiply_adds for layer in layers):,}"),
        ("activations, bytes", f"{_activation_bytes(layers):,}"),
    ):
        table.add_column(title, justify="right", footer=footer)
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.kernel} x {layer.kernel}" if layer.kernel else "",
            " x ".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
            f"{_activation_bytes([layer]):,}",
        )
    print_table(table, console)


def _activation_bytes(layers: list[configs.Layer]) -> int:
    """Of all outputs of one image in float32: what a forward pass that keeps them for the backward one holds."""
    total = 0
    for layer in layers:
        if layer.kind != "flatten":  # the pool's output, seen otherwise
            size = 4
            for side in layer.output_shape:
                size *= side
            total += size
    return total


@dataclass(frozen=True)
class _Flags(Recipe):
    """One training run. The defaults are the paper's (section 3.1)."""

    def __post_init__(self) -> None:
        pass  # tyro would frame an error of the recipe's own check: it is made below


def train(flags: tyro.conf.OmitArgPrefixes[_Flags], resume: bool = False) -> int:
    """Train one network as the paper trained it, and keep the best model by validation accuracy.

    Args:
        flags: the recipe.
        resume: go on with the run in --out where it was cut off, even by kill -9; the other flags must be the same.
    """
    recipe = Recipe(**vars(flags))
    load_tensorflow(console)
    from vggkeras.training.train import train as run

    run(recipe, console, resume=resume)
    return 0


def benchmark(
    arch: str = "D",
    data: str = "generated",
    image_size: int = 224,
    scale: str = "256:512",
    width: float = 1.0,
    fc_units: int = 4096,
    batch_norm: bool = False,
    batch_size: int = 16,
    precision: str = "float32",
    images: int = 480,
    steps: int = 4,
    rounds: int = 3,
    json: Path | None = None,
) -> int:
    """Measure how fast this machine trains: the step alone, the pipeline alone, both together.

    Args:
        arch: A, A-LRN, B, C, D, E or an alias.
        data: generated (JPEGs like photographs, 500 x 375 px), or a data string, whose training images are used.
        image_size: side of the crop, px.
        scale: training scale S, px, fixed (256) or jittered (256:512).
        width: multiplies the number of filters.
        fc_units: units of fc1 and fc2.
        batch_norm: batch normalisation after every convolution.
        batch_size: images a step.
        precision: float32, mixed_bfloat16 or mixed_float16.
        images: read through each pipeline a round.
        steps: trained a round, on a batch in memory and again from the pipeline.
        rounds: how often all is measured, in turn.
        json: write the figures to this file too.
    """
    recipe = Recipe(
        arch,
        data,
        image_size=image_size,
        scale=scale,
        width=width,
        fc_units=fc_units,
        batch_norm=batch_norm,
        batch_size=batch_size,
        precision=precision,
    )
    from vggkeras import files

    if json:
        files.check_file(json)
    load_tensorflow(console)
    from vggkeras.training.benchmark import CROPS, PLAIN, STEP, TRAINING
    from vggkeras.training.benchmark import benchmark as run

    found = run(recipe, images, steps, rounds, console)
    table = Table(
        title=f"{recipe.arch} at {image_size} px, width {width:g}, {batch_size} images a step, {precision}, scale {scale}, "
        f"{found['cores']} cores"
    )
    table.add_column("part")
    for column in ("images/s", "ms a step", "GFLOP/s", f"of {STEP}", f"of {PLAIN}"):
        table.add_column(column, justify="right")
    parts = found["parts"]
    for name, row in parts.items():
        rate = row["images_per_second"]
        trains = "gflops" in row
        table.add_row(
            name,
            f"{rate:.1f}" if rate < 100 else f"{rate:.0f}",
            f"{row['milliseconds_per_step']:.1f}" if trains else "",
            f"{row['gflops']:.0f}" if trains else "",
            f"{rate / parts[STEP]['images_per_second']:.3f}" if name == TRAINING else "",
            f"{rate / parts[PLAIN]['images_per_second']:.2f}" if name == CROPS else "",
        )
    print_table(table, console)
    if json:
        files.write_json(json, found)
    return 0


def evaluate(
    model: tuple[Path, ...],
    data: str,
    split: str = "validation",
    protocol: tuple[str, ...] = ("center",),
    scales: tuple[int, ...] = (),
    fuse: bool = False,
    mirrors: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
    json: Path | None = None,
    skip_unreadable: bool = False,
) -> int:
    """Score models, in whatever runtime, on every image of a split, by the paper's protocols (section 3.2).

    Args:
        model: run folders, .keras, .onnx or .tflite files, SavedModel folders. Each is a row, compared with the first.
        data: digits, tfds:NAME[/CONFIG], or a folder.
        split: train, validation or test.
        protocol: one or more of center (the central crop), dense (the whole image), multicrop (a 5 x 5 grid of crops,
            with mirrors), both (their average). dense asks an exported file for its dense form beside it (`python -m
            export --dense`).
        scales: smallest sides Q images are rescaled to, px; each is shown alone, and their posteriors averaged. By default
            the one the model was trained for.
        fuse: also average the posteriors of all models.
        mirrors: average the mirror's answer too, where the protocol is dense or multicrop (never for digits).
        provider: cpu, cuda, or tensorrt for .onnx files; an error where it does not load.
        threads: CPU threads of one operation; by default one for every core.
        json: write the figures, per-class recall, confusions and every image that flips between two rows to this file.
        skip_unreadable: go on without images that cannot be read, and say which.
    """
    from vggkeras import files, runtimes
    from vggkeras.data import decoding, sources, statistics
    from vggkeras.evaluation import paper as paper_module
    from vggkeras.evaluation import scoring, tables
    from vggkeras.runtimes import providers

    if not model:
        raise InputError("--model expects one model or more; received none.")
    if json:
        files.check_file(json)
    if provider == "tensorrt":  # in this process nothing has read it yet
        os.environ.setdefault(providers.TF32_OVERRIDE, "0")
    load_tensorflow(console, *model)
    predictors = [runtimes.load(path, provider, threads=threads) for path in model]
    loaded = sources.load_data(data, skip_unreadable=True)
    images, skipped = loaded.split(split), list(loaded.skipped)
    if (
        skipped and not skip_unreadable
    ):  # some are no images at all: those that are cut short are looked for too
        skipped += [
            images.image_name(i)
            for i, found in statistics.read_all(images)
            if isinstance(found, InputError)
        ]
        raise decoding.unreadable(skipped, loaded.spec)
    start = time.monotonic()
    with progress_bar(console) as bar:
        rows = scoring.evaluate(
            predictors,
            images,
            loaded.class_names,
            protocol,
            scales,
            mirrors=mirrors and loaded.mirrors,
            fuse=fuse,
            skipped=skipped if skip_unreadable else None,
            track=lambda items, total: bar.track(items, total=total, description=split),
        )
    seconds = time.monotonic() - start
    paper = [paper_module.paper_errors(predictors, row) for row in rows]
    title = f"{data}, {split}: {rows[0].images:,} images, {len(loaded.class_names)} classes; errors with Wilson 95% intervals"
    print_table(tables.table(rows, paper, title), console)
    short = tables.short_names([str(predictor.path) for predictor in predictors])
    told = [
        f"{short[str(p.path)]}: {p.path} in {p.runtime} {p.version}, {p.provider}"
        + (f", threads: {p.threads}" if p.threads else "")
        for p in predictors
    ]
    told.append(
        f"{rows[0].images:,} images in {seconds:.1f} s; images/s are of each row's own crops and runs"
    )
    told += tables.cost_ratios(rows) + tables.flips(rows, images.image_name)
    if not json:
        told.append(
            "--json FILE keeps these figures, recall by class, confusions and the images that flip between rows"
        )
    console.print("\n".join(dict.fromkeys(told)), soft_wrap=True, highlight=False)
    if skipped:
        console.print(
            f"skipped {len(skipped)} unreadable images: " + ", ".join(skipped), soft_wrap=True
        )
    if json:
        about = {"data": data, "split": split, "skipped": skipped}
        files.write_json(json, tables.records(rows, paper, images.image_name, about))
    return 0


def features(
    model: Path,
    data: str,
    out: Path,
    split: tuple[str, ...] = (),
    scales: tuple[int, ...] = (),
    aggregate: str = "average",
    mirrors: bool = True,
    svm: bool = False,
    train_images: int = 30,
    test_images: int = 50,
    repeats: int = 3,
    seed: int = 0,
    neighbours: Path | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    json: Path | None = None,
    skip_unreadable: bool = False,
) -> int:
    """Describe images by a network's very deep features (Appendix B), for a linear SVM and a page of nearest neighbours.

    Args:
        model: a run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder. An exported file needs its form for
            features beside it (`python -m export --features`).
        data: digits, tfds:NAME[/CONFIG], or a folder: of class folders, or of images alone, which have no labels.
        out: the .npz or .parquet file to write.
        split: train, validation or test, one or more; all there are when not given.
        scales: smallest sides Q images are rescaled to, px; by default the one the model was trained for.
        aggregate: average or stack: what becomes of the features of several scales.
        mirrors: average with the features of the mirror (never for digits).
        svm: fit a linear SVM on the features, by Caltech-101's protocol, and print its mean class recall.
        train_images: of each class, drawn from all images, for the SVM.
        test_images: of each class, at most, drawn from those left.
        repeats: random splits for the SVM.
        seed: decides the splits.
        neighbours: write a page of queries with their closest images to this .html file.
        provider: cpu, cuda, or tensorrt for .onnx files; an error where it does not load.
        threads: CPU threads of one operation; by default one for every core.
        json: write what was done, and the figures of the SVM and the neighbours, to this file too.
        skip_unreadable: go on without images that cannot be read, and say which.
    """
    from vggkeras import files, runtimes
    from vggkeras.features.extraction import check_out, describe, load_images, write
    from vggkeras.features.neighbours import check_page, write_page
    from vggkeras.features.svm import check_split, svm_recall, svm_record, svm_table
    from vggkeras.runtimes import providers

    check_out(out)
    if neighbours:
        check_page(neighbours)
    if json:
        files.check_file(json)
    loaded = load_images(data, skip_unreadable=skip_unreadable)
    protocol = (train_images, test_images, repeats, seed)
    if svm:
        check_split(loaded, split, *protocol)
    if provider == "tensorrt":  # in this process nothing has read it yet
        os.environ.setdefault(providers.TF32_OVERRIDE, "0")
    load_tensorflow(console, model)
    predictor, skipped = runtimes.load(model, provider, threads=threads), list(loaded.skipped)
    with progress_bar(console) as bar:
        found = describe(
            predictor,
            loaded,
            split,
            scales,
            aggregate,
            mirrors=mirrors,
            skipped=skipped if skip_unreadable else None,
            track=lambda items, total: bar.track(items, total=total, description="features"),
        )
    write(found, out)
    about = found.about
    console.print(
        f"{about['model']} in {about['runtime']} {about['version']}, {about['provider']}, on {data}: {', '.join(about['splits'])}",
        soft_wrap=True,
        highlight=False,
    )
    table = Table()
    columns = ("images", "Q", "aggregate", "features", "seconds", "images/s", "file")
    cells = (
        f"{about['images']:,}",
        " ".join(map(str, about["scales"])),
        f"{aggregate}{', mirrors' if about['mirrors'] else ''}",
        f"{about['dimensions']:,}",
        f"{found.seconds:.1f}",
        f"{about['images'] / found.seconds:.1f}",
        str(out),
    )
    for column in columns:
        table.add_column(
            column, justify="left" if column in ("Q", "aggregate", "file") else "right"
        )
    table.add_row(*cells)
    print_table(table, console)
    if skipped:
        console.print(
            f"skipped {len(skipped)} unreadable images: " + ", ".join(skipped), soft_wrap=True
        )
    if found.flatters and (svm or neighbours):
        console.print(f"[yellow]{found.flatters}[/]", soft_wrap=True)
    record = {**about, "seconds": found.seconds, "skipped": skipped}
    if svm:
        with console.status("linear SVM"):
            recall = svm_recall(
                found.features, found.labels, *protocol, class_names=loaded.class_names
            )
        print_table(svm_table(recall, train_images, test_images), console)
        asked = {
            "train_images": train_images,
            "test_images": test_images,
            "repeats": repeats,
            "seed": seed,
        }
        record["svm"] = {**asked, **svm_record(recall, loaded.class_names)}
    if neighbours:
        with console.status("nearest neighbours"):
            share = write_page(found, neighbours)
        console.print(
            f"neighbours: {neighbours}" + (f"; {share}" if share else ""),
            soft_wrap=True,
            highlight=False,
        )
        record["neighbours"] = share.record() if share else None
    elif not svm:
        svm_too = "--svm fits a linear SVM on them, " if loaded.class_names else ""
        console.print(
            f"{svm_too}--neighbours PAGE.html shows images with their closest ones", highlight=False
        )
    if json:
        files.write_json(json, record)
    return 0


def report(
    run: Annotated[Path, tyro.conf.Positional] = Path("runs/latest"),
    data: str | None = None,
    evaluation: tuple[Path, ...] = (),
    benchmark: tuple[Path, ...] = (),
    out: Path | None = None,
    skip_unreadable: bool = False,
) -> int:
    """Write a run or an export down as one HTML page: curves, errors, classes, mistakes, where it looks, artifacts.

    Args:
        run: a run's folder, or an export's.
        data: whose validation images to evaluate on; by default the data the model was trained on.
        evaluation: files that `evaluate --json` wrote, whose rows are shown too.
        benchmark: files that `python -m export.benchmark --json` wrote, shown as bars and rows.
        out: the page; by default report.html in the folder.
        skip_unreadable: go on without images that cannot be read, and say how many.
    """
    os.environ["KERAS_BACKEND"] = (
        "tensorflow"  # whose gradients show where it looks, whatever it was trained on
    )
    from vggkeras.report.page import report as write

    write(run, data, evaluation, benchmark, out, console, skip_unreadable=skip_unreadable)
    return 0


def predict(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    model: Path = Path("runs/latest"),
    top: int = 5,
    provider: str = "cpu",
    threads: int | None = None,
    json: bool = False,
) -> int:
    """Classify image files, or the images of folders.

    Args:
        files: JPEG, PNG, BMP or GIF files, or folders of them.
        model: a run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder.
        top: how many classes to show, most probable first.
        provider: cpu, cuda, or tensorrt for .onnx files; an error where it does not load.
        threads: CPU threads of one operation; by default one for every core.
        json: print one JSON object a line instead of a table.
    """
    import numpy as np

    from vggkeras import runtimes
    from vggkeras.data.decoding import SUFFIXES
    from vggkeras.evaluation.protocols import posteriors
    from vggkeras.runtimes import providers

    if top < 1:
        raise InputError(f"--top must be 1 or more; received {top}.")
    paths: list[Path] = []
    for given in files:
        found = (
            sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES)
            if given.is_dir()
            else [given]
        )
        if not found:
            raise InputError(f"{given} has no images ({', '.join(SUFFIXES)}).")
        paths += found
    if not paths:
        raise InputError("Expected image files or folders; received none.")
    if provider == "tensorrt":  # in this process nothing has read it yet
        os.environ.setdefault(providers.TF32_OVERRIDE, "0")
    load_tensorflow(console, model)
    predictor = runtimes.load(model, provider, threads=threads)
    probabilities = posteriors(predictor, paths)
    table = Table(title=f"{predictor.path} in {predictor.runtime}")
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for path, p in zip(paths, probabilities, strict=True):
        best = np.argsort(-p, kind="stable")[:top]
        if json:
            classes = [
                {"class": predictor.class_names[i], "probability": float(p[i])} for i in best
            ]
            print(_json({"image": str(path), "classes": classes}))
            continue
        for rank, i in enumerate(best):
            table.add_row(
                str(path) if rank == 0 else "",
                predictor.class_names[i],
                f"{p[i]:.4f}",
                end_section=i == best[-1],
            )
    if not json:
        console.print(table)
    return 0


def convert(
    source: Annotated[str, tyro.conf.Positional],
    destination: Annotated[str, tyro.conf.Positional],
) -> int:
    """Turn weights of another library into a model of ours, or ours into another library's.

    Args:
        source: a run's folder or a .keras file; keras:vgg16, keras:vgg19 (downloaded once, into Keras' cache),
            keras:FILE.h5, keras:FILE.weights.h5; torchvision:FILE or timm:FILE, .pth (through torch) or .safetensors;
            kerashub:FOLDER.
        destination: FILE.keras; or torchvision:FILE, timm:FILE (.pth or .safetensors), keras:FILE.h5,
            keras:FILE.weights.h5.
    """
    import warnings

    from vggkeras import files

    foreign = destination.partition(":")[0] in ("torchvision", "timm", "keras")
    path = Path(destination.partition(":")[2] if foreign else destination)
    if not foreign and path.suffix != ".keras":
        raise InputError(
            f"{destination}: expected FILE.keras, or torchvision:FILE, timm:FILE or keras:FILE.h5."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the path of a file to write.")
    if path.exists():
        raise InputError(
            f"{path} is there already, and no model is overwritten: remove it, or give another destination."
        )
    files.check_writable(path.parent)
    load_tensorflow(console)
    from vggkeras.weights import identify, load, save

    with console.status(f"reading {source}"):
        opened = identify.open_source(source)
        model = load.pretrained(opened)
    said: list[str] = []
    if foreign:
        with console.status(f"writing {path}"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            asked = save.save_weights(model, destination)
        said = [
            str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)
        ]
        mean, std = (", ".join(f"{value:.5g}" for value in asked[key]) for key in ("mean", "std"))
        scale = "0-1" if asked["scale"] != 1 else "0-255"
        means = f"its reader takes {asked['order']}, {scale}, minus ({mean}), over ({std})"
        following = ""
    else:
        with console.status(f"writing {path}"):
            save.save_model(model, path, opened.card)
        mean = ", ".join(f"{value:.3f}" for value in opened.mean_rgb)
        means = f"it takes RGB, 0-255, and subtracts ({mean}) itself"
        following = f". Next: python -m vggkeras predict --model {path} YOUR_IMAGE, or python -m export --format all --model {path}"
    table = Table(title=f"{opened.name} to {destination}")
    table.add_column("our layer")
    table.add_column("made from")
    table.add_column("shapes")
    for layer, names in opened.tensors.items():
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in opened.shapes[layer])
        table.add_row(layer, ", ".join(names), shapes)
    print_table(table, console)
    batch_norm = " with batch normalisation" if opened.batch_norm else ""
    console.print(
        f"{path}: configuration {opened.arch}{batch_norm} at {opened.input_shape[0]} px, {model.count_params():,} parameters, "
        f"{opened.classes} classes; {means}{following}",
        soft_wrap=True,
        highlight=False,
    )
    for line in said:
        console.print(f"note: {line}", soft_wrap=True, highlight=False)
    return 0


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def doctor() -> int:
    """Versions, devices, and which providers ONNX Runtime can really load; what to install where something lacks."""
    from vggkeras.doctor import examine

    return examine(console)


def demo(out: Path = Path("runs/demo")) -> int:
    """The whole way on handwritten digits: train, export to three formats, prove each file, report; about two minutes.

    Args:
        out: folder of the run; an earlier demo in it is replaced.
    """
    import subprocess

    start = time.monotonic()
    load_tensorflow(console)
    from vggkeras import files
    from vggkeras.training.record import RunRecord
    from vggkeras.training.train import train as run

    if (out / "run.json").exists():
        if RunRecord.read(out).card.data != "digits":
            raise InputError(f"{out} holds a run on other data: give another --out.")
        files.remove(out)
    recipe = Recipe(
        "A",
        "digits",
        out,
        batch_norm=True,
        width=0.25,
        fc_units=256,
        epochs=25,
        batch_size=64,
        learning_rate=0.04,
        patience=6,
    )
    result = run(recipe, console)
    accuracy = result.record.metrics["val_accuracy"]
    code = 0
    # In processes of their own, as a user would: this package knows nothing of export, and training may be on another
    # backend than these two.
    for arguments in (
        ["export", "--format", "all", "--model", str(out), "--images", "0"],
        ["vggkeras", "report", str(out)],
    ):
        console.print("$ python -m " + " ".join(arguments))
        code = code or subprocess.run([sys.executable, "-m", *arguments]).returncode
    if accuracy < SUFFICIENT_ACCURACY:
        console.print(
            f"validation accuracy {accuracy:.2%} is below {SUFFICIENT_ACCURACY:.0%}", style="red"
        )
        code = code or 1
    console.print(
        f"demo {'done' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s: digits validation accuracy "
        f"{accuracy:.2%}. Next: python -m vggkeras predict --model {out}/export/model.onnx YOUR_IMAGE",
        soft_wrap=True,
    )
    return code


def main() -> int:
    """Parse, and call one function."""
    commands = {
        f.__name__: _later(f)
        for f in (
            info,
            train,
            benchmark,
            evaluate,
            features,
            report,
            predict,
            convert,
            doctor,
            demo,
        )
    }
    command = parsed(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m vggkeras",
            description="The networks of the VGG paper: train, evaluate, predict.",
        )
    )
    return command()


def _later(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """A command of the same flags that, called, gives what is left to call: parsing is over before work begins."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return bind


def cli() -> int:
    """The console script vggkeras."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
