"""Train, export, prove and report on handwritten digits: `python -m vggkeras demo`.

python -m vggkeras demo --ui answers pictures in the browser, by all files of the newest run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vggkeras import files, locks
from vggkeras.commands.common import console
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import load_tensorflow

SUFFICIENT_ACCURACY = 0.97  # on the validation digits
RECIPE = Recipe(
    "A",
    "digits",
    batch_norm=True,
    width=0.25,
    fc_units=256,
    epochs=25,
    batch_size=64,
    learning_rate=0.04,
    patience=6,
)


@dataclass(frozen=True)
class Demo:
    """Train on handwritten digits, export to three formats, prove each file, report; two minutes.

    Attributes:
        out: Folder of the run; an earlier demo in it is replaced.
        ui: Train nothing: serve a page that answers a picture by several models side by side.
        model: For --ui: .keras, .onnx and .tflite files, SavedModels, or folders of runs and
            exports, with all that passed; by default runs/latest.
        host: For --ui: the address to listen at; 0.0.0.0 lets other machines in.
        port: For --ui: 0 is any that is free.
    """

    out: Path = Path("runs/demo")
    ui: bool = False
    model: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860

    def run(self) -> int:
        """Serve the page, or do it all.

        Return 0, or what failed first returned, or 1 below `SUFFICIENT_ACCURACY`.
        """
        if self.ui:
            from vggkeras.commands.demo_page import serve

            return serve(self.model or (Path("runs/latest"),), self.host, self.port)
        if self != Demo(self.out):
            raise InputError("--model, --host and --port are of the page: give --ui as well.")
        start = time.monotonic()
        load_tensorflow(console)
        accuracy = self._train()
        # As a user would, in child processes: this package knows nothing of export, and training
        # may be on another backend than these two.
        code = _python("export", "--format", "all", "--model", str(self.out), "--images", "0")
        code = code or _python("vggkeras", "report", str(self.out))
        if accuracy < SUFFICIENT_ACCURACY:
            console.print(
                f"validation accuracy {accuracy:.2%} is below {SUFFICIENT_ACCURACY:.0%}",
                style="red",
            )
            code = code or 1
        console.print(
            f"demo {'done' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s: digits "
            f"validation accuracy {accuracy:.2%}. Next: python -m vggkeras predict --model "
            f"{self.out}/export/model.onnx YOUR_IMAGE",
            soft_wrap=True,
        )
        return code

    def _train(self) -> float:
        """Train, and return the validation accuracy."""
        from vggkeras.training.record import RunRecord
        from vggkeras.training.train import train

        if (self.out / "run.json").exists():
            if RunRecord.read(self.out).card.data != RECIPE.data:
                raise InputError(f"{self.out} holds a run on other data: give another --out.")
            with locks.locked(self.out):
                for path in locks.others_in(self.out):
                    files.remove(path)
        run = train(replace(RECIPE, out=self.out), console)
        return run.record.metrics["val_accuracy"]


def _python(*arguments: str) -> int:
    console.print("$ python -m " + " ".join(arguments))
    return subprocess.run([sys.executable, "-m", *arguments]).returncode
