"""Say how a recipe departs from the paper's (section 3.1), and which command trains it."""

from __future__ import annotations

import dataclasses
import shlex

from vggkeras.data import in_memory
from vggkeras.recipe import Recipe


def recipe_text(recipe: Recipe) -> str:
    """Return "the paper's recipe", or "not the paper's: " and what differs.

    The image size, the scale, the number of epochs, the patience and the precision suit the data
    and the machine: they are printed elsewhere, and no departures.
    """
    parts = departures(recipe)
    return f"not the paper's: {', '.join(parts)}" if parts else "the paper's recipe"


def departures(recipe: Recipe) -> list[str]:
    """Return what differs from the paper, a few words each."""
    plain, usual = Recipe(), recipe.defaults
    decays = recipe.optimizer == "adamw"
    cosine = "cosine schedule" + (f" (warmup {recipe.warmup})" if recipe.warmup else "")
    texts = {
        "batch_norm": "batch normalization",
        "width": f"{recipe.width:g} of the filters",
        "fc_units": f"{recipe.fc_units} FC units",
        "dropout": f"dropout {recipe.dropout:g}",
        "channels": "gray images",
        "init": f"{recipe.init} initialization",
        "copied_rate": f"copied layers at {recipe.copied_rate:g} of the learning rate",
        "init_from": f"weights from {recipe.init_from}",
        "freeze": "only the last layer trained" if recipe.freeze == "features" else "FC trained",
        "batch_size": f"batch {recipe.batch_size}",
        "optimizer": "AdamW",
        "momentum": f"momentum {recipe.momentum:g}",
        "schedule": cosine,
        "ema": f"averaged weights (EMA {recipe.ema})",
        "label_smoothing": f"label smoothing {recipe.label_smoothing:g}",
        "class_weights": "balanced class weights",
        "mixup": f"MixUp {recipe.mixup:g}",
        "randaugment": "RandAugment",
        "flip": "no mirroring",
        "color": "no color shift",
        "monitor": "best epoch by cross-entropy",
    }
    fields = [f for f in texts if f != "init" or recipe.init == "he"]  # the paper has the others
    if recipe.boxes:  # the paper's start from a classifier (Appendix A)
        fields.remove("init_from")
    parts = [texts[f] for f in fields if getattr(recipe, f) != getattr(plain, f)]
    if recipe.boxes and not recipe.init_from:
        parts.append("boxes from random weights")
    if recipe.learning_rate != usual["learning_rate"]:
        parts.append(f"learning rate {recipe.learning_rate:g}")
    if decays or recipe.weight_decay != usual["weight_decay"]:
        parts.append(f"weight decay {recipe.weight_decay:g}")
    return parts


def command(recipe: Recipe) -> list[str]:
    """Return the command that trains a recipe, a flag an item, without flags that are defaults."""
    if recipe.data.startswith(in_memory.PREFIX):
        return ["# of arrays in Python: vggkeras.train(recipe, data=...)"]
    parts = [["python", "-m", "vggkeras", "train"]]
    parts += [["--arch", recipe.arch], ["--data", recipe.data]]
    for field in dataclasses.fields(Recipe):
        value, flag = getattr(recipe, field.name), field.name.replace("_", "-")
        default = recipe.defaults.get(field.name, field.default)
        if field.name in ("arch", "data") or value == default:
            continue
        if isinstance(value, bool):
            parts.append([f"--{flag}" if value else f"--no-{flag}"])
        else:
            parts.append([f"--{flag}", str(value)])
    return [shlex.join(part) for part in parts]
