"""The first lines that a training run prints: its network, data and recipe, and copied weights."""

from __future__ import annotations

import keras
from rich.table import Table

from vggkeras import recipe as recipe_module
from vggkeras.departures import recipe_text
from vggkeras.terminal import print_table
from vggkeras.training.progress import Job
from vggkeras.weights import identify, load


def print_copied(
    job: Job, source: identify.Source, copied: dict[str, str | None], model: keras.Model
) -> None:
    """Print which layer was copied from where, and why another was not."""
    recipe, console = job.recipe, job.console
    table = Table(title=f"weights from {recipe.init_from}")
    table.add_column("layer")
    table.add_column("from")
    for layer, origin in copied.items():
        table.add_row(layer, origin or f"({recipe.init}, seed {recipe.seed})")
    print_table(table, console)
    mean = ", ".join(f"{value:.3f}" for value in source.mean_rgb)
    channels = "RGB" if recipe.channels == 3 else "gray"
    for line in (
        *load.explain(copied, source, model),
        f"the first layer subtracts the mean {channels} of {source.name}: {mean}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def print_job(job: Job, model: keras.Model, devices: str) -> None:
    """Print what is trained, on what and how."""
    recipe, (low, high), images = job.recipe, job.scale, job.training.count
    job.console.print(
        f"{recipe.arch} at {job.size} px, {model.count_params():,} parameters, {images:,} training "
        f"and {job.validation.count:,} validation images ({job.data.validation}) of "
        f"{len(job.data.class_names)} classes, {job.steps} steps an epoch, on {devices}: {job.out}"
    )
    parts = [f"learning rate {recipe.learning_rate:g}"]
    if recipe.batch_size != recipe_module.PAPER_BATCH:
        parts[0] += f" x {recipe.batch_size}/{recipe_module.PAPER_BATCH} = {recipe.first_rate:g}"
    batch = f"batch {recipe.batch_size}"
    if recipe.accumulate > 1:
        batch += f" = {recipe.accumulate} x {recipe.images_per_step}"
    parts += [batch, f"scale {low}" if low == high else f"scale {low} to {high}"]
    parts += [recipe.precision, f"seed {recipe.seed}"]
    if recipe.channels == 1:
        parts.append("gray, so without the color shift")
    trained = recipe.trained_layers
    if trained:
        parts.append(f"trained: {', '.join(trained)}")
    if recipe.copied_rate != 1:
        parts.append(f"copied layers at {recipe.copied_rate:g} of the learning rate")
    if job.class_weights:
        least, most = min(job.class_weights.values()), max(job.class_weights.values())
        parts.append(f"class weights {least:.3g} to {most:.3g}")
    if recipe.boxes:
        how = "one whatever the class" if recipe.boxes == "scr" else "one a class"
        parts.append(f"boxes, {how}; localized: of the true class, IoU > 0.5, in the central crop")
        if not recipe.init_from:
            parts.append("without a classifier to start from: all weights are random")
    job.console.print(", ".join(parts), highlight=False, soft_wrap=True)
    job.console.print(recipe_text(recipe), highlight=False, soft_wrap=True)
    small = sum(count for side, count in job.card.smallest_sides.items() if int(side) < low)
    if small:
        job.console.print(
            f"{small:,} of {images:,} training images are smaller than the scale, {low} px, and "
            "are enlarged"
        )
