"""Train one network (section 3.1): `python -m vggkeras train --arch A --data digits`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from vggkeras.commands.common import console
from vggkeras.recipe import Recipe
from vggkeras.terminal import load_tensorflow


@dataclass(frozen=True)
class RecipeFlags(Recipe):
    """The recipe. The defaults are the paper's (section 3.1)."""

    def __post_init__(self) -> None:
        """Check nothing yet: tyro would print an error from here in a frame of its own."""


@dataclass(frozen=True)
class Train:
    """Train one network, as the paper did unless asked otherwise, and keep the best epoch's model.

    Attributes:
        resume: Continue the run in --out where it was interrupted, even by kill -9; the other flags
            must be the same, except --epochs, which lengthens or shortens it, finished or not.
    """

    recipe: tyro.conf.OmitArgPrefixes[RecipeFlags]
    resume: bool = False

    def run(self) -> int:
        """Train."""
        recipe = Recipe(**vars(self.recipe))
        load_tensorflow(console)
        from vggkeras.training.train import train

        train(recipe, console, resume=self.resume)
        return 0
