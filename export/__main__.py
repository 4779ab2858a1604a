"""Turn a trained model into proven files.

python -m export --format onnx
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

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
    values = vars(request).copy()
    web, bundle, card, license = (values.pop(name) for name in ("web", "bundle", "card", "license"))
    if web or bundle:
        from export.web import write_page

        if web is None:
            raise InputError("--bundle goes with --web DIR, which says where to write the page.")
        _check_alone(request, "web", "bundle")
        write_page(web, request.model, bundle, Console())
        return 0
    if card or license:
        from export.publish import write_card

        if card is None:
            raise InputError("--license goes with --card DIR, which says where to write the card.")
        _check_alone(request, "card", "license")
        write_card(card, request.model, license, Console())
        return 0
    # The exporters', whatever backend the model was trained on.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    entries = export_model(**values, console=Console())
    return 0 if all(entry["passed"] for entry in entries.values()) else 1


def _check_alone(request: Request, flag: str, other: str) -> None:
    """Raise InputError for flags of an export, where a flag asks for what is no export."""
    used = {name: getattr(request, name) for name in ("model", flag, other)}
    if request != Request(**used):
        raise InputError(
            f"--{flag} takes --model and --{other} alone, and files that were exported before: "
            "export first, and give --model FILE to choose one."
        )


def cli() -> int:
    """Run the console script vggkeras-export."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
