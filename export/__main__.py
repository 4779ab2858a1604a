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
    web, bundle = values.pop("web"), values.pop("bundle")
    if web or bundle:
        from export.web import write_page

        if web is None:
            raise InputError("--bundle goes with --web DIR, which says where to write the page.")
        if request != Request(model=request.model, web=web, bundle=bundle):
            raise InputError(
                "--web takes --model and --bundle alone, and files that were exported before: "
                "export first, and give --model FILE.onnx to choose one."
            )
        write_page(web, request.model, bundle, Console())
        return 0
    # The exporters', whatever backend the model was trained on.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    entries = export_model(**values, console=Console())
    return 0 if all(entry["passed"] for entry in entries.values()) else 1


def cli() -> int:
    """Run the console script vggkeras-export."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
