"""TODO"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras import files
from vggkeras.data.splits import Data
from vggkeras.evaluation.statistics import Evaluation, wilson
from vggkeras.recipe import Recipe

if TYPE_CHECKING:
    import keras


from typing import TYPE_CHECKING

from vggkeras.pages import percent
from vggkeras.report.pictures import (
    encoded_picture,
)
from vggkeras.report.sources import ReportSource


def confusions(row: Evaluation) -> dict[str, Any]:
    """The confusion matrix, with numbers where classes are few, otherwise as a picture, and its largest mistakes."""
    matrix = row.confusion_matrix()
    images = matrix.sum(axis=1)
    strength = np.sqrt(
        matrix / np.maximum(images, 1)[:, None]
    )  # of colour: few of many are seen too
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [
        (int(i), int(j))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    most = [
        {
            "label": row.class_names[i],
            "prediction": row.class_names[j],
            "count": wrong[i, j],
            "images": images[i],
        }
        for i, j in pairs
    ]
    if len(matrix) <= NUMBERED:
        return {"counts": matrix.tolist(), "strength": strength.tolist(), "most": most}
    enlarged = max(1, 720 // len(matrix))
    sheet = np.zeros((*matrix.shape, 4), np.uint8)
    sheet[..., :3] = np.where(
        np.eye(len(matrix), dtype=bool)[..., None], (58, 110, 190), (216, 84, 48)
    )
    sheet[..., 3] = np.round(255 * strength)
    return {
        "picture": encoded_picture(sheet.repeat(enlarged, 0).repeat(enlarged, 1), "PNG"),
        "most": most,
    }


def recalls(row: Evaluation) -> dict[str, Any]:
    """Each class' share of images recognised, the lowest first."""
    matrix = row.confusion_matrix()
    bars = []
    for label, right, images in zip(
        row.class_names, matrix.diagonal().tolist(), matrix.sum(axis=1).tolist(), strict=True
    ):
        if images:
            low, high = wilson(right, images)
            bars.append(
                {
                    "label": label,
                    "value": right / images,
                    "low": low,
                    "high": high,
                    "images": images,
                }
            )
    bars.sort(key=lambda bar: bar["value"])
    return {"bars": bars if len(row.class_names) <= RECALLS else bars[:WORST], "classes": len(bars)}


def artifacts(source: ReportSource) -> list[dict[str, Any]]:
    """A row an entry of the certificate, and whether the file is still the one that was proven."""
    model = source.folder / "model.keras"
    ours = files.sha256(model) if source.is_run and source.certificate and model.is_file() else None
    rows = []
    for name, entry in source.certificate.items():
        path = source.exports / (name if entry["passed"] else f"{name}.rejected")
        if not path.exists():
            doubt = "the file is gone"
        elif files.sha256(path) != entry["sha256"]:
            doubt = "the file was changed since"
        elif ours and entry["model_sha256"] != ours:
            doubt = "of another model.keras: export it again"
        else:
            doubt = None
        shares = {}
        for share, interval in (
            ("top1_agreement", "top1_agreement_interval"),
            ("accuracy_artifact", "accuracy_interval"),
        ):
            known, ends = entry.get(share), entry.get(interval)
            shown = None if known is None else percent(known)
            shares[share] = (
                f"{shown} [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if shown and ends else shown
            )
        # What an older certificate has not, is not known.
        measured = (
            dict.fromkeys(("max_abs_error", "milliseconds", "provider", "left_in_float")) | entry
        )
        told = {"agreement": shares["top1_agreement"], "accuracy": shares["accuracy_artifact"]}
        rows.append({**measured, **told, "name": name, "doubt": doubt})
    return rows


def page_title(source: ReportSource, data: Data | None) -> str:
    arch, spec = source.card.arch, source.card.data or (data.spec if data else "")
    network = arch.replace("_", " ").upper() if arch.startswith("vgg") else f"VGG {arch}".strip()
    name = spec.removeprefix("tfds:") if spec.startswith("tfds:") else Path(spec).name
    return f"{network} on {name}" if name else network


def run_facts(source: ReportSource, network: keras.Model | None) -> list[tuple[str, str]]:
    """(what, how it is) of a run or an export, briefly."""
    card, recipe, facts = source.card, source.card.recipe, []
    if card.arch:
        parts = [card.arch]
        parts += ["batch normalisation"] if recipe and recipe.batch_norm else []
        parts += [f"{recipe.width:g} of the filters"] if recipe and recipe.width != 1 else []
        parts += [f"{network.count_params():,} parameters"] if network else []
        facts.append(("network", ", ".join(parts)))
    if card.image_size:
        scale = f", validated at a smallest side of {card.scale} px" if card.scale else ""
        facts.append(("input", f"{card.image_size} px crops{scale}"))
    if card.data:
        counts = [f"{count:,} {name}" for name, count in card.images.items()]
        facts.append(("data", card.data + (f": {', '.join(counts)} images" if counts else "")))
    if source.history:
        spent = f", {_duration(source.record.seconds)}" if source.record else ""
        epochs = recipe.epochs if recipe else "?"
        facts.append(("training", f"{len(source.history)} of {epochs} epochs{spent}"))
    if card.epoch is not None:
        facts.append(("epoch", str(card.epoch)))
    if source.record and source.record.host:
        facts.append(("host", source.record.host))
    versions = card.versions
    facts += (
        [("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))]
        if versions
        else []
    )
    file = "run.json" if source.is_run else "certificate.json"
    changed = datetime.datetime.fromtimestamp((source.folder / file).stat().st_mtime)
    facts.append((file, f"last written {changed:%Y-%m-%d %H:%M}"))
    return facts


def command(recipe: Recipe) -> list[str]:
    """Return the command line that gives a recipe, a flag a part; flags with the default value are left out."""
    parts = [["python", "-m", "vggkeras", "train"]]
    parts += [["--arch", recipe.arch], ["--data", recipe.data]]
    for field in dataclasses.fields(Recipe):
        value, flag = getattr(recipe, field.name), field.name.replace("_", "-")
        if field.name in ("arch", "data") or value == field.default:
            continue
        parts += [
            [f"--{'' if value else 'no-'}{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        ]
    return [shlex.join(part) for part in parts]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


NUMBERED = 30  # classes up to which the confusion matrix has numbers
CONFUSIONS = 20  # most frequent ones listed where it has none
RECALLS = 50  # classes up to which all have a bar
WORST = 30  # that have one where they are more
