"""Turn a trained model into proven files.

python -m export --format onnx
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from export import export_model
from export.request import Request
from export.triton import Serving, write
from vggkeras.errors import InputError, parsed, run_command
from vggkeras.terminal import Console


@dataclass(frozen=True)
class Arguments:
    """Export a trained model; or, with --triton, let Triton serve what is exported already."""

    request: tyro.conf.OmitArgPrefixes[Request]
    serving: tyro.conf.OmitArgPrefixes[Serving]


def main() -> int:
    """Parse, and call one function."""
    arguments = parsed(
        lambda: tyro.cli(
            Arguments,
            prog="python -m export",
            config=(tyro.conf.DisallowNone,),
        )
    )
    request, serving = arguments.request, arguments.serving
    if serving.triton:
        write(request, serving, Console())
        return 0
    if serving != Serving():
        raise InputError("--provider and --batch-sizes are Triton's: give --triton DIR too.")
    if folder := _asked(request, "web", "bundle"):
        from export.web import write_page

        write_page(folder, request.model, request.bundle, Console())
        return 0
    if folder := _asked(request, "card", "license"):
        from export.publish import write_card

        write_card(folder, request.model, request.license, Console())
        return 0
    others = ("web", "bundle", "card", "license")
    values = {name: value for name, value in vars(request).items() if name not in others}
    # The exporters', whatever backend the model was trained on.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    entries = export_model(**values, console=Console())
    return 0 if all(entry["passed"] for entry in entries.values()) else 1


def _asked(request: Request, flag: str, other: str) -> Path | None:
    """Return the folder to write from files that were exported before, if a flag asks for one.

    Args:
        request: all that was asked for.
        flag: names the folder.
        other: goes with it.

    Raises:
        InputError (a ValueError): the other one without it, or flags of an export beside it.
    """
    folder = getattr(request, flag)
    if folder is None:
        if getattr(request, other):
            raise InputError(f"--{other} goes with --{flag} DIR, which says where to write.")
        return None
    used = {name: getattr(request, name) for name in ("model", flag, other)}
    if request != Request(**used):
        raise InputError(
            f"--{flag} takes --model and --{other} alone, and files that were exported before: "
            "export first, and give --model FILE to choose one."
        )
    return folder


def cli() -> int:
    """Run the console script vggkeras-export."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
