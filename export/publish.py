"""Write the proven files of an export as a folder for a model hub, with a model card.

    python -m export --card digits --model runs/digits

README.md is the card: its YAML, which the hub reads, and its text say what the certificate and the
files say, and nothing else. `vggkeras.load("hf:USER/NAME")` loads what was uploaded.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from export import artifact, golden, verify
from export.request import finished
from vggkeras import certificate, files, hub, pages
from vggkeras.card import Form, ModelCard
from vggkeras.certificate import CERTIFICATE, Entry
from vggkeras.departures import command, recipe_text
from vggkeras.errors import InputError, visible
from vggkeras.recipe import Recipe
from vggkeras.terminal import load_tensorflow, plain

if TYPE_CHECKING:
    import huggingface_hub

README, CONFIG, LABELS = "README.md", "config.json", "labels.txt"
TEMPLATE = Path(__file__).with_name(f"{README}.jinja")
LICENSE, UNKNOWN = "apache-2.0", "unknown"  # identifiers of the hub's
TASKS = {  # the hub's names
    Form.CLASSIFIER: "image-classification",
    Form.DENSE: "image-classification",
    Form.FEATURES: "image-feature-extraction",
    Form.BOXES: "object-detection",
    Form.DENSE_BOXES: "object-detection",
}
EVIDENCE = re.compile(r"[\d,]+ images of (.+)/([^/]+)")  # data, split


def write_card(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] = "runs/latest",
    license: str | None = None,
    console: Console | None = None,
) -> Path:
    """Write the folder of a published model, and return its path.

    It gets the proven files, their certificate.json and golden answers, labels.txt, config.json and
    the model card, README.md.

    Args:
        folder: to write; nothing may be there. Its name is the model's.
        model: a run, a .keras file or an export's folder, of which all files are taken that passed
            their proof; or one of these files.
        license: of the weights, an identifier of the hub's; by default apache-2.0 of a network
            that was trained from random weights, and unknown of any other.
        console: where to say what was written.

    Raises:
        InputError (a ValueError): a folder that is there; no file that passed its proof, or one
            that fails it here; huggingface_hub is not installed.
    """
    folder, model, console = Path(folder), Path(model), plain(console)
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already: remove it, or give --card another folder.")
    files.check_writable(folder)
    if find_spec("huggingface_hub") is None:
        raise hub.not_installed("--card", "huggingface_hub", "hub")
    source, entries = _passed(model)
    load_tensorflow(console, *(source / name for name in entries))
    for name in entries:
        verify.check_proven(source / name)
    main = hub.usual(entries) or min(entries, key=lambda name: entries[name].target is not None)
    card = artifact.read(source / main).card
    license = license or (LICENSE if card.recipe and not card.recipe.init_from else UNKNOWN)
    with files.replacing(folder) as beside:
        beside.mkdir()
        for name, entry in entries.items():
            artifact.copy(source / name, beside / name, entry.sha256)
        answers = {golden.golden_path(source, entry.form): entry for entry in entries.values()}
        for path, entry in answers.items():
            if entry.golden_sha256 or path.is_file():  # an older certificate names none
                artifact.copy(path, beside / path.name, entry.golden_sha256 or files.sha256(path))
        (beside / CERTIFICATE).write_text(certificate.text_of(entries), encoding="utf-8")
        labels = "".join(f"{label}\n" for label in card.class_names)
        (beside / LABELS).write_text(labels, encoding="utf-8")
        (beside / CONFIG).write_text(files.json_text(_config(card, entries)), encoding="utf-8")
        text = _readme(folder.absolute().name, main, card, entries, license)
        (beside / README).write_text(text, encoding="utf-8")
    console.print(
        f"card: {folder}, {len(entries)} proven file{'s' * (len(entries) > 1)}, "
        f"{files.size(folder):,} bytes, license {license}; `hf upload USER/{folder.name} {folder}` "
        "publishes it",
        soft_wrap=True,
    )
    return folder


def _passed(model: Path) -> tuple[Path, dict[str, Entry]]:
    """Return the folder of an export, and the entries of its files that passed, or of the one.

    Raises:
        InputError (a ValueError): there is none.
    """
    is_file = model.suffix in (".onnx", ".tflite") or (model / "saved_model.pb").exists()
    if is_file:
        folder, one = model.parent, certificate.read(model.parent).get(model.name)
        entries = {model.name: one} if one and one.passed else {}
    else:
        folder, entries = finished(model)
    if not entries:
        raise InputError(
            f"{model} is no file that {folder / CERTIFICATE} says passed its proof: export it "
            "again."
            if is_file
            else f"{folder} has no file that passed its proof: export one with `python -m export "
            f"--model {model}`."
        )
    return folder, entries


def _config(card: ModelCard, entries: dict[str, Entry]) -> dict[str, Any]:
    """Return config.json: what a program that knows nothing of this package needs."""
    said = card.to_description()
    return {
        "library_name": "vggkeras",
        "architecture": card.arch,
        "task": TASKS[card.form],
        **{key: said[key] for key in ("input", "output", "scale", "resize", "mean_rgb")},
        "id2label": {str(number): name for number, name in enumerate(card.class_names)},
        "files": {name: entry.sha256 for name, entry in entries.items()},
    }


def _readme(name: str, main: str, card: ModelCard, entries: dict[str, Entry], license: str) -> str:
    """Return README.md: the metadata as YAML, and the text."""
    recipe = card.recipe and _without_paths(card.recipe)
    text = pages.render(
        TEMPLATE,
        metadata=_metadata(name, card, entries, license).to_yaml(),
        name=name,
        main=main,
        usual=hub.USUAL,
        card=card,
        entries=entries,
        license=license,
        network=f"VGG {card.arch}" if card.arch else "a convolutional network",
        data=pages.data_title(card.data),
        recipe=recipe and recipe_text(recipe),
        command=recipe and visible(" \\\n    ".join(command(recipe))),
    )
    return f"{text}\n"


def _without_paths(recipe: Recipe) -> Recipe:
    """Return a recipe in which folders and files of this machine have their last name alone."""
    published = recipe.data == "digits" or recipe.data.startswith("tfds:")
    published |= re.fullmatch(rf"{hub.PREFIX}({hub.OWNED}|\w+)(:.*)?", recipe.data) is not None
    weights = recipe.init_from and re.sub(r"[^:]*[/\\]", "", recipe.init_from)
    data = recipe.data if published else pages.data_title(recipe.data)
    return replace(recipe, out=None, data=data, init_from=weights)


def _metadata(
    name: str, card: ModelCard, entries: dict[str, Entry], license: str
) -> huggingface_hub.ModelCardData:
    """Return what the hub reads of a card, with the certificate's figures as its model-index."""
    from huggingface_hub import ModelCardData

    suffixes = {Path(file).suffix for file in entries}
    formats = {".onnx": "onnx", ".tflite": "tflite", "": "tf-keras"}
    results = [result for file, entry in entries.items() for result in _results(file, card, entry)]
    dataset = re.fullmatch(rf"{hub.PREFIX}({hub.OWNED})(:.*)?", card.data)
    return ModelCardData(
        license=license,
        library_name="vggkeras",
        pipeline_tag=TASKS[card.form],
        tags=["vgg", "keras", *(formats[suffix] for suffix in sorted(suffixes & formats.keys()))],
        datasets=[dataset[1]] if dataset else None,
        metrics=["accuracy"] if any(r.metric_type == "accuracy" for r in results) else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _results(file: str, card: ModelCard, entry: Entry) -> list[huggingface_hub.EvalResult]:
    """Return a file's figures that are in its entry, each with its interval if that is there."""
    from huggingface_hub import EvalResult

    found = EVIDENCE.fullmatch(entry.evidence)
    data, split = found.groups() if found else (entry.evidence, None)
    right = (entry.accuracy_artifact, entry.accuracy_interval)
    same = (entry.top1_agreement, entry.top1_agreement_interval)
    if entry.form.is_boxes:
        figures = {
            "localized": (f"boxes of {file} with an IoU above 0.5", *right),
            "same_verdicts": (f"boxes of {file} above or below that, as Keras' are", *same),
        }
    else:
        figures = {
            "accuracy": (f"top-1 accuracy of {file}", *right),
            "top1_agreement": (f"top-1 agreement of {file} with Keras", *same),
        }
    return [
        EvalResult(
            task_type=TASKS[card.form],
            dataset_type=data,
            dataset_name=data,
            dataset_split=split,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            metric_args={"file": file, "images": entry.images}
            | ({"confidence_interval_95": list(interval)} if interval else {}),
        )
        for kind, (name, value, interval) in figures.items()
        if value is not None
    ]
