"""Convert weights from and to other libraries.

python -m vggkeras convert keras:vgg16 vgg16.keras
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.table import Table

from vggkeras import files
from vggkeras.commands.common import console, print_note
from vggkeras.errors import InputError
from vggkeras.terminal import load_tensorflow, print_table

if TYPE_CHECKING:
    import keras

    from vggkeras.weights.identify import Source
    from vggkeras.weights.save import ReaderPreprocessing

OTHER_LIBRARIES = ("torchvision", "timm", "keras")


@dataclass(frozen=True)
class Convert:
    """Convert weights of another library into a model of vggkeras, or the other way round.

    Attributes:
        source: A run's folder or a .keras file; keras:vgg16, keras:vgg19 (downloaded once, into
            Keras' cache), keras:FILE.h5, keras:FILE.weights.h5; torchvision:FILE or timm:FILE, .pth
            (through torch) or .safetensors; kerashub:FOLDER.
        destination: FILE.keras; or torchvision:FILE, timm:FILE (.pth or .safetensors),
            keras:FILE.h5, keras:FILE.weights.h5.
    """

    source: tyro.conf.Positional[str]
    destination: tyro.conf.Positional[str]

    def run(self) -> int:
        """Convert, and print what each layer was made from."""
        destination_path(self.destination)  # before TensorFlow loads
        load_tensorflow(console)
        with console.status(f"converting {self.source}"):
            conversion = convert(self.source, self.destination)
        print_table(conversion.table(), console)
        print_note(conversion.summary())
        for line in conversion.warnings:
            print_note(f"note: {line}")
        return 0


@dataclass(frozen=True)
class Conversion:
    """What `convert` read and wrote."""

    source: Source
    destination: str
    path: Path
    parameters: int
    preprocessing: ReaderPreprocessing | None  # of another library's reader; None: a .keras file
    warnings: tuple[str, ...]

    def table(self) -> Table:
        """Return a row a layer: the tensors it was made from, and their shapes."""
        table = Table(title=f"{self.source.name} to {self.destination}")
        table.add_column("our layer")
        table.add_column("made from")
        table.add_column("shapes")
        for layer, names in self.source.tensors.items():
            shapes = (" x ".join(map(str, shape)) for shape in self.source.shapes[layer])
            table.add_row(layer, ", ".join(names), ", ".join(shapes))
        return table

    def summary(self) -> str:
        """Return in words what the new file is, and how its reader prepares images."""
        batch_norm = " with batch normalization" if self.source.batch_norm else ""
        network = (
            f"{self.path}: configuration {self.source.arch}{batch_norm} at "
            f"{self.source.input_shape[0]} px, {self.parameters:,} parameters, "
            f"{self.source.classes} classes"
        )
        reader = self.preprocessing
        if reader is None:
            mean = ", ".join(f"{value:.3f}" for value in self.source.mean_rgb)
            return (
                f"{network}; it takes RGB, 0-255, and subtracts ({mean}) itself. Next: python -m "
                f"vggkeras predict --model {self.path} YOUR_IMAGE, or python -m export --format "
                f"all --model {self.path}"
            )
        mean, std = (
            ", ".join(f"{value:.5g}" for value in values)
            for values in (reader["mean"], reader["std"])
        )
        scale = "0-1" if reader["scale"] != 1 else "0-255"
        return (
            f"{network}; its reader takes {reader['order']}, {scale}, minus ({mean}), over ({std})"
        )


def convert(source: str, destination: str) -> Conversion:
    """Read a network's weights, and write them as a .keras file or as another library reads them.

    Args:
        source: as `vggkeras.pretrained` takes it.
        destination: FILE.keras, or as `vggkeras.save_weights` takes it. No file is overwritten.

    Raises:
        InputError (a ValueError): an unknown source or destination; a file that is there already;
            a network that the other library does not have.
    """
    from vggkeras.weights import identify, load

    path = destination_path(destination)
    weights = identify.open_source(source)
    model = load.pretrained(weights)
    reader, caught = _write(model, weights, destination, path)
    return Conversion(weights, destination, path, model.count_params(), reader, caught)


def destination_path(destination: str) -> Path:
    """Return the path of a destination, which can be written and is not there yet.

    Raises:
        InputError (a ValueError): it is, it cannot, or it is neither FILE.keras nor LIBRARY:FILE.
    """
    library, _, rest = destination.partition(":")
    is_other = library in OTHER_LIBRARIES
    path = Path(rest if is_other else destination)
    if not is_other and path.suffix != ".keras":
        raise InputError(
            f"{destination}: expected FILE.keras, or torchvision:FILE, timm:FILE or keras:FILE.h5."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the path of a file to write.")
    if path.exists():
        raise InputError(
            f"{path} is there already, and no model is overwritten: remove it, or give another "
            "destination."
        )
    files.check_writable(path.parent)
    return path


def _write(
    model: keras.Model, weights: Source, destination: str, path: Path
) -> tuple[ReaderPreprocessing | None, tuple[str, ...]]:
    """Write the file; return the preprocessing of another library's reader, and its warnings."""
    from vggkeras.weights import save

    if destination.partition(":")[0] not in OTHER_LIBRARIES:
        save.save_model(model, path, weights.card)
        return None, ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        reader = save.save_weights(model, destination)
    return reader, tuple(str(w.message) for w in caught if issubclass(w.category, UserWarning))
