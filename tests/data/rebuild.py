"""Train the tiny network that most tests share, and keep it beside this file.

    python tests/data/rebuild.py

digits.keras is the network (A-LRN with batch normalization, on the handwritten digits),
digits.json its run.json and digits.csv its history.csv. The bits differ from machine to machine;
tests/training/test_digits.py compares what it gives with a network trained anew.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import vggkeras
from vggkeras.training.runs import Run

HERE = Path(__file__).parent
STORED = {"model.keras": "digits.keras", "run.json": "digits.json", "history.csv": "digits.csv"}


def recipe(out: Path) -> vggkeras.Recipe:
    """Return how the network is trained."""
    return vggkeras.Recipe(
        "A-LRN",
        "digits",
        out,
        batch_norm=True,
        width=0.1,
        fc_units=64,
        dropout=0.2,
        epochs=6,
        batch_size=32,
        learning_rate=0.16,  # 0.02 with its batch of 32
    )


def train(out: Path) -> Run:
    """Train the network into a folder."""
    return vggkeras.train(recipe(out))


def main() -> None:
    """Train the network, and store it here."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder) / "digits")
        for name, stored in STORED.items():
            shutil.copy(run.path / name, HERE / stored)


if __name__ == "__main__":
    main()
