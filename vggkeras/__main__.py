"""The table of commands: `python -m vggkeras COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from vggkeras.commands.benchmark import Benchmark
from vggkeras.commands.convert import Convert
from vggkeras.commands.demo import Demo
from vggkeras.commands.doctor import Doctor
from vggkeras.commands.evaluate import Evaluate
from vggkeras.commands.features import Features
from vggkeras.commands.info import Info
from vggkeras.commands.localize import Localize
from vggkeras.commands.predict import Predict
from vggkeras.commands.report import Report
from vggkeras.commands.train import Train
from vggkeras.errors import parsed, run_command

COMMANDS: dict[str, Callable[..., Any]] = {
    "info": Info,
    "train": Train,
    "benchmark": Benchmark,
    "evaluate": Evaluate,
    "localize": Localize,
    "features": Features,
    "report": Report,
    "predict": Predict,
    "convert": Convert,
    "doctor": Doctor,
    "demo": Demo,
}


def main() -> int:
    """Parse the flags of a command, and run it."""
    command = parsed(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m vggkeras",
            description="The networks of the VGG paper: train, evaluate, predict.",
            config=(tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName),
        )
    )
    return command.run()


def cli() -> int:
    """Run the console script vggkeras."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
