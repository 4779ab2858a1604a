"""Files of others: what leads out of them, what inflates, what was changed, what runs code."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from networks import ours

import vggkeras
from vggkeras import archives, models
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.weights import identify


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A network of ours as net.keras, net.h5 and net.weights.h5, and secret.h5 beside it."""
    folder = tmp_path_factory.mktemp("stored")
    network = ours()
    models.save_model(network, folder / "net.keras", ModelCard())
    for suffix in ("h5", "weights.h5"):
        vggkeras.save_weights(network, f"keras:{folder / f'net.{suffix}'}")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["x"] = np.arange(10_000, dtype=np.float32)
    return folder


def rezipped(source: Path, path: Path, entries: dict[str, bytes | Path], **options: Any) -> Path:
    """Copy an archive with some of its entries replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in {**dict.fromkeys(old.namelist()), **entries}:
            content = entries.get(name)
            if isinstance(content, Path):
                new.write(content, name, zipfile.ZIP_STORED)
            else:
                method = {"compress_type": zipfile.ZIP_STORED} if content is None else {}
                new.writestr(name, old.read(name) if content is None else content, **method)
    return path


# ---- HDF5


def _external(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_dataset(path, shape, "f4", external=[("secret.h5", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "x", (10_000,))[: shape[0]]
    file.create_virtual_dataset(path, layout)


def _soft_link(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file["elsewhere"] = np.zeros(shape, "f4")
    file[path] = h5py.SoftLink("/elsewhere")


def _external_link(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file[path] = h5py.ExternalLink("secret.h5", "x")


def _second_name(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file[path] = file["/"]


def _never_written(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_dataset(path, shape, "f4", chunks=True, compression="gzip")


def _larger_than_the_file(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_dataset(path, (1 << 40,), "f4", chunks=(1024,), compression="gzip")[:4] = 1.0


def _huge_chunks(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    big = file.create_dataset(path, (1 << 30,), "i1", maxshape=(None,), chunks=(1 << 30,))
    big.resize(shape)


def _text(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_dataset(path, shape, h5py.string_dtype())[:] = "text"


def _deep(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_group("/".join("g" * 5000))


def _a_group(file: h5py.File, path: str, shape: tuple[int, ...]) -> None:
    file.create_group(path)


HOSTILE_H5: list[Callable[[h5py.File, str, tuple[int, ...]], None]] = [
    *(_external, _virtual, _soft_link, _external_link, _second_name, _never_written),
    *(_larger_than_the_file, _huge_chunks, _text, _deep, _a_group),
]


def first_bias(file: h5py.File) -> h5py.Dataset:
    found: list[h5py.Dataset] = []
    file.visititems(
        lambda _, item: (
            found.append(item) if isinstance(item, h5py.Dataset) and len(item.shape) == 1 else None
        )
    )
    return found[0]


@pytest.mark.parametrize("attack", HOSTILE_H5, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras"])
def test_no_hdf5_file_leads_out_of_itself_or_declares_more_than_it_holds(stored, attack, suffix):
    shutil.copy(stored / "secret.h5", ".")
    source = "weights.h5" if suffix == "keras" else suffix
    path = Path(shutil.copy(stored / f"net.{source}", f"bad.{source}"))
    with h5py.File(path, "a") as file:
        bias = first_bias(file)
        name, shape = bias.name, bias.shape
        del file[name]
        attack(file, name, shape)
    if suffix == "keras":
        path = rezipped(stored / "net.keras", Path("bad.keras"), {archives.WEIGHTS: path})
        with pytest.raises(InputError, match=r"refused|damaged|cannot be loaded"):
            models.load_model(path)
    with pytest.raises(InputError, match=r"refused|damaged|\d missing"):
        identify.open_source("bad.keras" if suffix == "keras" else f"keras:{path}")


# ---- .keras


def weights_of(path: Path) -> list[bytes]:
    source = identify.open_source(path)
    return [array.tobytes() for layer in source.shapes for array in source.read(layer)]


def test_a_changed_byte_of_a_keras_file_is_found_or_changes_nothing(stored):
    whole = (stored / "net.keras").read_bytes()
    expected, chance = weights_of(stored / "net.keras"), random.Random(0)
    refused = 0
    for trial in range(60):
        content = bytearray(whole)
        place = chance.randrange(len(whole)) if trial % 2 else -1 - chance.randrange(400)
        content[place] ^= 1 << chance.randrange(8)
        Path("net.keras").write_bytes(content)
        try:
            assert weights_of(Path("net.keras")) == expected, place
        except InputError:
            refused += 1
    assert refused > 40


def test_a_changed_bit_of_the_weights_is_refused_by_every_reader(stored):
    content = bytearray((stored / "net.keras").read_bytes())
    content[len(content) // 2] ^= 1
    Path("net.keras").write_bytes(content)
    for read in (identify.open_source, models.load_model, vggkeras.pretrained):
        with pytest.raises(InputError, match=r"checksum of model\.weights\.h5 in it is wrong"):
            read(Path("net.keras"))


@pytest.mark.parametrize("entry", ["config.json", archives.ABOUT, "assets/big"])
def test_a_keras_file_that_inflates_is_refused_before_it_is_read(stored, entry):
    content = b" " * (archives.TEXT + 1)
    options = {"compression": zipfile.ZIP_DEFLATED}
    path = rezipped(stored / "net.keras", Path("bomb.keras"), {entry: content}, **options)
    for read in (identify.open_source, models.load_model):
        with pytest.raises(InputError, match="inflates to"):
            read(path)


def test_two_entries_of_one_name_and_a_deep_config_are_refused(stored):
    path = Path(shutil.copy(stored / "net.keras", "twice.keras"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    deep = rezipped(stored / "net.keras", Path("deep.keras"), {"config.json": b"[" * 100_000})
    for read in (identify.open_source, models.load_model):
        with pytest.raises(InputError, match="4 names"):
            read(path)
        with pytest.raises(InputError, match="nested too deep"):
            read(deep)


def test_what_a_config_says_of_images_and_mean_is_checked(stored):
    with zipfile.ZipFile(stored / "net.keras") as archive:
        text = archive.read("config.json").decode()
    config = json.loads(text)
    images, mean = (layer["config"] for layer in config["config"]["layers"][:2])
    for part, key, value in (
        *((images, "batch_shape", shape) for shape in ([], [None, "a", 64, 3], [None, 1e300] * 2)),
        *((mean, "offset", value) for value in ("text", [1.0], [float("nan")] * 3, 5)),
    ):
        kept, part[key] = part[key], value
        content = json.dumps(config).encode()
        path = rezipped(stored / "net.keras", Path("bad.keras"), {"config.json": content})
        part[key] = kept
        with pytest.raises(InputError, match="is no network of vggkeras"):
            identify.open_source(path)


def hostile_layer(name: str, module: Any, /, **config: Any) -> dict[str, Any]:
    return {"class_name": name, "module": module, "config": config, "registered_name": None}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (hostile_layer("Lambda", "keras.layers", function="x"), "no part of a network"),
        (hostile_layer("StringLookup", "keras.layers", vocabulary="/etc/passwd"), "no part"),
        (hostile_layer("TFSMLayer", "keras.layers", filepath="x"), "no part of a network"),
        (hostile_layer("Tokenizer", "keras_hub.src.tokenizers", proto="/x"), "no part"),
        (hostile_layer("system", "os"), "no part of a network"),
        (hostile_layer("get_file", "keras.utils", origin="x"), "no part of a network"),
        (hostile_layer("__lambda__", None, value="x"), "no part of a network"),
        (hostile_layer("Dense", ["keras"], units=1), "no part of a network"),
        (hostile_layer("Dense", "keras.layers", units=10**10, name="dense"), "weights, and the"),
        (hostile_layer("Dense", "keras.layers", units="a"), "ValueError|TypeError"),
        ("text", "cannot be loaded"),
    ],
)
def test_a_config_names_only_parts_of_a_network_no_larger_than_its_weights(part, message):
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, name="dense")]
    )
    network.save("net.keras")
    assert models.load_model(Path("net.keras"))[0].output_shape == (None, 2)
    config = json.loads(network.to_json())
    config["config"]["layers"][-1] = part
    path = rezipped(
        Path("net.keras"), Path("bad.keras"), {"config.json": json.dumps(config).encode()}
    )
    with pytest.raises(InputError, match=message):
        models.load_model(path)
    assert keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).count_params() == 3
