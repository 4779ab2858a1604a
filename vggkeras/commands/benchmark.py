"""Measure how fast this machine trains: `python -m vggkeras benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vggkeras import files
from vggkeras.commands.common import console
from vggkeras.recipe import Precision, Recipe
from vggkeras.terminal import load_tensorflow, print_table

FIGURES = files.Kind("of `vggkeras benchmark`", files.json_with("parts", "crops_over_plain"))


@dataclass(frozen=True)
class Benchmark:
    """Measure how fast this machine trains: the step alone, the pipeline alone, both together.

    It says whether training is input-bound, and what the pipeline could feed in how many threads.

    Attributes:
        arch: A, A-LRN, B, C, D, E or an alias.
        data: generated (JPEGs like photographs, 500 x 375 px), or a data string, whose training
            images are used.
        image_size: Side of the crop, px.
        scale: Training scale S, px, fixed (256) or jittered (256:512).
        width: Multiplies the number of filters.
        fc_units: Units of fc1 and fc2.
        batch_norm: Batch normalization after every convolution.
        batch_size: Images per step.
        precision: Precision of computation.
        images: Images read through each pipeline in a round.
        steps: Steps trained in a round, on a batch in memory and again from the pipeline.
        rounds: How often all parts are measured, in turn.
        json: Write the figures to this file too.
    """

    arch: str = "D"
    data: str = "generated"
    image_size: int = 224
    scale: str = "256:512"
    width: float = 1.0
    fc_units: int = 4096
    batch_norm: bool = False
    batch_size: int = 16
    precision: Precision = "float32"
    images: int = 480
    steps: int = 4
    rounds: int = 3
    json: Path | None = None

    def run(self) -> int:
        """Measure, print the table, and write the JSON file."""
        recipe = Recipe(
            self.arch,
            self.data,
            image_size=self.image_size,
            scale=self.scale,
            width=self.width,
            fc_units=self.fc_units,
            batch_norm=self.batch_norm,
            batch_size=self.batch_size,
            precision=self.precision,
        )
        if self.json:
            files.check_file(self.json, FIGURES)
        load_tensorflow(console)
        from vggkeras.training.benchmark import benchmark

        result = benchmark(recipe, self.images, self.steps, self.rounds, console)
        print_table(result.table(), console)
        console.print(result.verdict(), soft_wrap=True, highlight=False)
        if self.json:
            files.write_json(self.json, result.to_json())
        return 0
