"""Turn a trained model into proven files.

python -m export --format onnx
"""

from __future__ import annotations

import os
import sys

import tyro

from export import export_model
from export.request import Request
from vggkeras.errors import parsed, run_command
from vggkeras.terminal import Console


def main() -> int:
    """Parse, and call one function."""
    request = parsed(
        lambda: tyro.cli(Request, prog="python -m export", config=(tyro.conf.DisallowNone,))
    )
    # The exporters', whatever backend the model was trained on.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    entries = export_model(**vars(request), console=Console())
    return 0 if all(entry["passed"] for entry in entries.values()) else 1


def cli() -> int:
    """Run the console script vggkeras-export."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
