"""Hostile files made by hand: .keras, HDF5, SavedModel, images and their names."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import h5py
import hostile_hdf5
import hostile_images
import hostile_saved_models
from hostile_keras import UNASKED, WEIGHTS, hostile_keras, write_zip
from machinery import Case, Outcome, Trial, peak_memory
from PIL import Image
from subjects import (
    canary,
    command,
    distinct_images,
    load,
    prepare_exports,
    prepare_run,
    refusals,
    refused,
    worst,
)

WORST_MB = 300  # above rest, of one image
WORST_SECONDS = 5.0
MODEL_MB = 1000  # above rest, of loading a small model


# ---- .keras -------------------------------------------------------------------------------------


def members_of(path: Path) -> dict[str, bytes]:
    """Return the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def open_keras(case: Case) -> Outcome:
    """Load, use and convert a hostile .keras file: no code runs, and nothing but a line is said."""
    hostile = hostile_keras(canary(case))[case.index]
    path = case.scratch / "hostile.keras"
    hostile.write(members_of(case.subject / "run" / "model.keras"), path)
    photo = _photo(case.scratch)
    with peak_memory() as peak:
        with refusals() as ends:
            load(path)
        commands = [command("vggkeras", "convert", path, case.scratch / "new.keras")]
        if not ends:
            commands.append(command("vggkeras", "predict", photo, "--model", path))
        if hostile.name == UNASKED:
            os.environ["TFDS_DATA_DIR"] = str(canary(case))
            commands.append(command("export", "--model", path, "--format", "onnx"))
        megabytes = peak()
    ends += [ended.failure for ended in commands if ended.failure]
    path.unlink()  # some are large
    if canary(case).exists():
        return Outcome("code ran", detail=hostile.name)
    if megabytes > MODEL_MB:
        return Outcome("memory", detail=f"{hostile.name}: {megabytes:.0f} MB", megabytes=megabytes)
    end = worst([*ends, Outcome(note="harmless")])
    return Outcome(end.failure, end.note, f"{hostile.name}: {end.detail}", megabytes=megabytes)


def _photo(folder: Path, name: str | bytes = "photo.png") -> Path:
    path = folder / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(distinct_images(1)[0]).save(open(path, "wb"), "PNG")  # noqa: SIM115
    return path


# ---- HDF5 ---------------------------------------------------------------------------------------

CONTAINERS = ("keras:{}/weights.h5", "keras:{}/new.weights.h5", "{}/model.keras")


def prepare_weights(subject: Path) -> None:
    """Prepare one network in the three files that hold HDF5."""
    import vggkeras
    from vggkeras import models
    from vggkeras.card import ModelCard

    prepare_run(subject)
    if (subject / "weights" / "model.keras").exists():
        return
    network = vggkeras.build("D", (32, 32, 3), 10, width=0.1, fc_units=8, seed=0)
    (subject / "weights").mkdir(exist_ok=True)
    for container in CONTAINERS[:2]:
        vggkeras.save_weights(network, container.format(subject / "weights"))
    card = ModelCard(tuple("0123456789"))
    models.save_model(network, subject / "weights" / "model.keras", card)


def open_hdf5(case: Case) -> Outcome:
    """Convert from a hostile HDF5 file in each container: it is refused, and reads no other one."""
    name, change = list(hostile_hdf5.HOSTILE.items())[case.index]
    secret = hostile_hdf5.write_secret(case.scratch)
    ends = []
    with peak_memory() as peak:
        for number, container in enumerate(CONTAINERS):
            source = container.format(case.scratch)
            path = Path(source.removeprefix("keras:"))
            shutil.copy(case.subject / "weights" / path.name, path)
            _change_hdf5(path, lambda file: change(file, secret))
            target = case.scratch / f"{number}.keras"
            ended = command("vggkeras", "convert", source, target)
            end = refused(ended, "accepted")
            if target.exists() and hostile_hdf5.has_secret(target.read_bytes()):
                end = Outcome("read another file")
            elif name == "wild names" and ended.code == 0 and not ended.failure:
                end = Outcome(note="harmless")  # that nothing asks for
            ends.append(Outcome(end.failure, end.note, f"{name}, {path.name}: {end.detail}"))
        megabytes = peak()
    if megabytes > MODEL_MB:
        return Outcome("memory", detail=f"{name}: {megabytes:.0f} MB", megabytes=megabytes)
    return worst(ends)


def _change_hdf5(path: Path, change) -> None:
    if path.suffix != ".keras":
        with h5py.File(path, "r+") as file:
            change(file)
        return
    members, inner = members_of(path), path.with_name("inner.h5")
    inner.write_bytes(members[WEIGHTS])
    with h5py.File(inner, "r+") as file:
        change(file)
    write_zip(members | {WEIGHTS: inner.read_bytes()}, path)


# ---- SavedModel ---------------------------------------------------------------------------------


def open_saved_model(case: Case) -> Outcome:
    """Load, verify and use a SavedModel with operators that touch files: each is refused."""
    name = hostile_saved_models.NAMES[case.index]
    folder = case.scratch / "saved_model"
    hostile_saved_models.write_saved_model(name, folder, canary(case))
    canary(case).unlink(missing_ok=True)  # tracing may have made it
    if case.index % 2:  # with our description, whose checksums cannot fit
        extra = case.subject / "run" / "export" / "saved_model" / "assets.extra"
        shutil.copytree(extra, folder / "assets.extra")
    with refusals() as ends:
        load(folder)
        ends.append(Outcome("loaded", detail=name))
    photo = _photo(case.scratch)
    predicted = command("vggkeras", "predict", photo, "--model", folder)
    ends.append(refused(predicted, "used"))
    ends.append(refused(command("export.verify", folder), "verified", codes=(1, 2)))
    if canary(case).exists():
        return Outcome("code ran", detail=name)
    return worst(ends)


# ---- images -------------------------------------------------------------------------------------


def prepare_images(subject: Path) -> None:
    """Prepare the exports, and all large images."""
    prepare_exports(subject)
    (subject / "images").mkdir(exist_ok=True)
    for number, make in enumerate(hostile_images.BOMBS.values()):
        path = subject / "images" / f"{number}"
        if not path.exists():
            path.write_bytes(make())


def open_image(case: Case) -> Outcome:
    """Give a hostile image to a model: little memory, little time, nothing but its name said."""
    bombs, names = list(hostile_images.BOMBS), list(hostile_images.NAMES)
    if case.index < len(bombs):
        return _bomb(case, bombs[case.index])
    if case.index < len(bombs) + len(names):
        return _named(case, names[case.index - len(bombs)])
    places = list(hostile_images.not_files(case.scratch))
    return _not_a_file(case, *places[case.index - len(bombs) - len(names)])


def _model(case: Case) -> Path:
    return case.subject / "run" / "export" / "model.onnx"


def _bomb(case: Case, name: str) -> Outcome:
    import vggkeras

    model = load(_model(case))
    model(distinct_images(1))
    path = case.subject / "images" / f"{case.index}"
    # Its size in memory before the first image is no image's.
    vggkeras.posteriors(model, [_photo(case.scratch)], scales=(256,))
    with peak_memory() as peak, refusals() as ends:
        import time

        start = time.monotonic()
        vggkeras.posteriors(model, [path], scales=(256,))
    megabytes, seconds = peak(), time.monotonic() - start
    said = f"{name}: {megabytes:.0f} MB, {seconds:.1f} s"
    if ends and ends[0].failure:
        return ends[0]
    if megabytes > WORST_MB:
        return Outcome("memory", detail=said, megabytes=megabytes)
    if seconds > WORST_SECONDS:
        return Outcome("slow", detail=said, megabytes=megabytes)
    return Outcome(note="refused" if ends else "answered", detail=said, megabytes=megabytes)


def _named(case: Case, name: str) -> Outcome:
    file = hostile_images.NAMES[name]
    _photo(case.scratch / "folder", file)
    predicted = command("vggkeras", "predict", "folder", "--model", _model(case))
    if predicted.failure:
        return predicted.failure
    if predicted.code == 0 and file.startswith(b"[") and file.decode() not in predicted.out:
        return Outcome("name lost", detail=f"{name}: {predicted.out[-500:]}")
    for label in (b"cat", file.removesuffix(b".png")):
        for split in ("train", "val"):
            folder = (case.scratch / split).joinpath(label.decode("utf-8", "surrogateescape"))
            _photo(folder)
    data = command("vggkeras", "evaluate", "--model", _model(case), "--data", case.scratch)
    return refused(data, "accepted")


def _not_a_file(case: Case, name: str, path: Path) -> Outcome:
    """Use it as an image, and in a folder of data."""
    import vggkeras

    predicted = command("vggkeras", "predict", path, "--model", _model(case))
    data = case.scratch / "data"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            _photo(data / split / label)
    (data / "train" / "cat" / "y.png").symlink_to(path)
    with refusals() as ends:
        vggkeras.load_data(str(data))
    return worst([refused(predicted, "accepted"), *ends, Outcome(note="left out", detail=name)])


TRIALS = (
    Trial("hostile-keras", 56, 19, open_keras, prepare_run),
    Trial("hostile-hdf5", 20, 20, open_hdf5, prepare_weights),
    Trial("hostile-saved-models", 10, 4, open_saved_model, prepare_exports),
    Trial("hostile-images", 40, 20, open_image, prepare_images, limit=60.0, megabytes=6000.0),
)
