"""Write a proven .onnx file as a page that runs it in the browser: a folder for any static server.

    python -m export --web page --bundle node_modules

The page (export/page/) proves the file again on loading, on the backend that will answer. What it
loads is named in its about.json with a digest, which the browser compares.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console

from export import artifact, stages, verify
from export.golden import Golden
from export.request import finished
from vggkeras import files, hub, pages
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.terminal import plain

ASSETS = Path(__file__).with_name("page")
COPIED = ("page.css", "page.js", "worker.js", "sw.js")
INDEX, ABOUT, GOLDEN, RUNTIME = "index.html", "about.json", "golden.bin", "runtime"
MOST_BYTES = 200_000_000  # a page holds a model two to three times, and a phone ends one of 1 GB

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist"
# Of the files in that version of the npm package: WebAssembly alone; WebGPU and WebNN too.
PINNED = {
    "ort.wasm.bundle.min.mjs": (
        73054,
        "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    ),
    "ort-wasm-simd-threaded.wasm": (
        14239897,
        "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    ),
    "ort.webgpu.bundle.min.mjs": (
        117732,
        "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        26781914,
        "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
    ),
}
INSTALL = f"npm install --ignore-scripts {PACKAGE}@{VERSION}"
CDN_ADVICE = f"To do without a CDN, run `{INSTALL}` and write the page with --bundle node_modules."


@dataclass(frozen=True)
class Loaded:
    """A file that the page loads; the browser refuses one with another digest."""

    url: str  # relative to the page, or a CDN's
    integrity: str  # sha256 or sha384, as Subresource Integrity writes it
    bytes: int

    @classmethod
    def of(cls, path: Path, url: str, algorithm: str) -> Loaded:
        """Return a file of the folder; its address changes with its content, for caches."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, algorithm).digest()
        integrity = f"{algorithm}-{base64.b64encode(digest).decode()}"
        return cls(f"{url}?{digest.hex()[:16]}", integrity, path.stat().st_size)


def write_page(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] = "runs/latest",
    bundle: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Write the folder of a page that classifies pictures in the browser, and return its path.

    Args:
        folder: to write; nothing may be there.
        model: a .onnx file that `python -m export` wrote, or one of a hub, hf:…; or a run, a .keras
            file or an export's folder, of whose .onnx files that passed the smallest is taken.
        bundle: a node_modules folder from which onnxruntime-web is copied; by default the page
            loads its pinned version from a CDN.
        console: where to say what was written.

    Raises:
        InputError (a ValueError): a folder that is there; no such file; one that fails its proof
            here, or is too large for a page; no onnxruntime-web in the bundle.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already: remove it, or give --web another folder.")
    files.check_writable(folder)
    dist = _dist(Path(bundle)) if bundle else None
    path = chosen(Path(model))
    verify.check_proven(path)
    contents = artifact.read(path)
    assert contents.golden is not None
    _check(path, contents.card)
    with files.replacing(folder) as beside:
        beside.mkdir()
        for asset in COPIED:
            shutil.copy(ASSETS / asset, beside)
        shutil.copy(path, beside / path.name)
        about = {
            "labels": contents.card.class_names or list(map(str, range(contents.card.outputs))),
            "input": contents.card.input_shape,
            "scale": contents.card.scale,
            "precision": contents.card.precision,
            "model": asdict(Loaded.of(beside / path.name, path.name, "sha256")),
            "golden": _golden(contents.card, contents.golden, beside / GOLDEN),
            "runtime": _runtime(dist, beside),
            "advice": CDN_ADVICE if dist is None else "Serve the whole folder.",
        }
        (beside / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        (beside / INDEX).write_text(_index(path, contents.card, dist), encoding="utf-8")
    plain(console).print(
        f"page: {folder} ({path.name}, {files.size(folder):,} bytes); look at it with "
        f"`python -m http.server --directory {folder}`",
        soft_wrap=True,
    )
    return folder


def chosen(model: Path) -> Path:
    """Return the .onnx file that a page is to run: see `write_page`.

    Raises:
        InputError (a ValueError): there is none.
    """
    if (file := hub.local(model)).suffix == ".onnx":
        return file
    if file != model:  # one of a hub
        raise InputError(
            f"A page needs a .onnx file, and {model} is {file.name}: give --model "
            "hf:USER/NAME:model.onnx, or another .onnx file there."
        )
    folder, entries = finished(model)
    passed = [
        (entry.bytes, name)
        for name, entry in entries.items()
        if name.endswith(".onnx") and entry.target is None and entry.form is Form.CLASSIFIER
    ]
    if not passed:
        raise InputError(
            f"{folder} has no .onnx file that passed its proof: write one with `python -m export "
            f"--format onnx --precision int8 --model {model}`, or give --model FILE.onnx."
        )
    return folder / min(passed)[1]


def _check(path: Path, card: ModelCard) -> None:
    """Raise InputError for a file that is no classifier of pictures, or too large for a page."""
    assert card.input_shape is not None
    if card.form is not Form.CLASSIFIER or card.input_shape[2] not in (1, 3):
        raise InputError(
            f"{path} is a {card.form} file of images [{', '.join(map(str, card.input_shape))}]: "
            "expected a classifier of 3 channels, or 1; export one without --dense and --features."
        )
    if (size := files.size(path)) > MOST_BYTES:
        raise InputError(
            f"{path} has {size / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:.0f} MB are the most for a "
            "page, whose browser holds a model more than once: export it with --precision int8 (a "
            "quarter of the bytes), or train a narrower network (--width, --fc-units)."
        )


def _golden(card: ModelCard, golden: Golden, path: Path) -> dict[str, object]:
    """Write the golden images, their answers, and the photograph of the first; return what's told.

    The file is bytes `[N, H, W, C]`, float32 `[N, classes]`, little-endian, and the encoded
    photograph.
    """
    answers, tolerance = verify.expected_answers(card, golden)
    photograph = golden.original or b""
    path.write_bytes(golden.images.tobytes() + answers.astype("<f4").tobytes() + photograph)
    kind = Image.open(io.BytesIO(photograph)).get_format_mimetype() if photograph else None
    return {
        **asdict(Loaded.of(path, GOLDEN, "sha256")),
        "images": len(golden.images),
        "tolerance": tolerance,
        "photograph": kind,
        "levels": stages.RESIZED,
    }


def _dist(bundle: Path) -> Path:
    """Return the folder of onnxruntime-web's files in node_modules.

    Raises:
        InputError (a ValueError): it is not there, or another version without them.
    """
    dist = bundle / PACKAGE / "dist"
    if missing := [name for name in PINNED if not (dist / name).is_file()]:
        raise InputError(
            f"--bundle {bundle}: expected a node_modules folder with {PACKAGE}/dist/{missing[0]}; "
            f"there is none: run `{INSTALL}` and give the node_modules that it makes."
        )
    return dist


def _runtime(dist: Path | None, folder: Path) -> dict[str, object]:
    """Return what the page loads of ONNX Runtime Web, copied into its folder where bundled."""
    loaded = [Loaded(f"{CDN}/{name}", digest, size) for name, (size, digest) in PINNED.items()]
    if dist:
        (folder / RUNTIME).mkdir()
        copies = [Path(shutil.copy(dist / name, folder / RUNTIME)) for name in PINNED]
        loaded = [Loaded.of(copy, f"{RUNTIME}/{copy.name}", "sha384") for copy in copies]
    script, wasm, gpu_script, gpu_wasm = map(asdict, loaded)
    return {
        "wasm": {"script": script, "wasm": wasm},
        "gpu": {"script": gpu_script, "wasm": gpu_wasm},
    }


def _version(dist: Path | None) -> str:
    if dist is None:
        return VERSION
    return str(json.loads((dist.parent / "package.json").read_text(encoding="utf-8"))["version"])


def _index(path: Path, card: ModelCard, dist: Path | None) -> str:
    """Return index.html."""
    sources: Sequence[str] = ["'self'"]
    if dist is None:
        sources = [*sources, *(f"{CDN}/{name}" for name in PINNED)]
    trained = f" trained on {pages.data_title(card.data)}" if card.data else ""
    return pages.render(
        ASSETS / f"{INDEX}.jinja",
        title=f"VGG {card.arch}{trained}" if card.arch else path.stem,
        about=f"It tells {card.outputs} classes apart.",
        sources=sources,
        model=path.name,
        bytes=files.size(path),
        sha256=files.sha256(path),
        version=_version(dist),
    )
