"""Make the report's header: its title, and facts about the model."""

from __future__ import annotations

import datetime

from vggkeras.card import ModelCard
from vggkeras.data.splits import Data
from vggkeras.departures import recipe_text
from vggkeras.pages import data_title
from vggkeras.report.sources import ReportSource


def page_title(card: ModelCard, data: Data | None) -> str:
    """Return the page's title, such as "VGG A on digits"."""
    arch, name = card.arch, data_title(card.data or (data.spec if data else ""))
    network = arch.replace("_", " ").upper() if arch.startswith("vgg") else f"VGG {arch}".strip()
    return f"{network} on {name}" if name else network


def run_facts(source: ReportSource) -> list[tuple[str, str]]:
    """Return (name, value) of what is known about a run or an export."""
    card, record = source.card, source.record
    training = ""
    if source.history:
        epochs = card.recipe.epochs if card.recipe else "?"
        duration = f", {_duration(record.seconds)}" if record else ""
        training = f"{len(source.history)} of {epochs} epochs{duration}"
        for change in record.epochs_changed if record else ():
            training += (
                f"; {change.now} instead of {change.before} since epoch {change.after_epoch}"
            )
    scale = f", validated at a smallest side of {card.scale} px" if card.scale else ""
    counts = ", ".join(f"{count:,} {name}" for name, count in card.images.items())
    file = "run.json" if source.is_run else "certificate.json"
    changed = datetime.datetime.fromtimestamp((source.folder / file).stat().st_mtime)
    facts = [
        ("network", _network(source)),
        ("input", f"{card.image_size} px crops{scale}" if card.image_size else ""),
        ("data", card.data + (f": {counts} images" if card.data and counts else "")),
        ("validation", card.validation),
        ("recipe", recipe_text(card.recipe) if card.recipe else ""),
        ("training", training),
        ("epoch", "" if card.epoch is None else str(card.epoch)),
        ("host", record.host if record else ""),
        ("versions", ", ".join(f"{name} {number}" for name, number in card.versions.items())),
        (file, f"last written {changed:%Y-%m-%d %H:%M}"),
    ]
    return [(name, value) for name, value in facts if value]


def _network(source: ReportSource) -> str:
    arch, recipe = source.card.arch, source.card.recipe
    if not arch:
        return ""
    parts = [arch]
    if recipe and recipe.batch_norm:
        parts.append("batch normalization")
    if recipe and recipe.width != 1:
        parts.append(f"{recipe.width:g} of the filters")
    if source.network:
        parts.append(f"{source.network.count_params():,} parameters")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
