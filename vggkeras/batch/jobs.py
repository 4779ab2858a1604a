"""Label a source of images into a folder, and go on where a killed job was.

python -m vggkeras predict photos --model vgg16.onnx --out labels
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggkeras import files, locks, runtimes
from vggkeras.batch import manifest as manifests
from vggkeras.batch import sources
from vggkeras.batch.labelling import Labeller, columns
from vggkeras.batch.manifest import Manifest
from vggkeras.batch.parts import Advance, Job, Labelled, summary, write_parts
from vggkeras.errors import InputError
from vggkeras.runtimes.providers import ON_CPU, ON_GPU, Options

if TYPE_CHECKING:
    from vggkeras.runtimes import Predictor

ENGINES = ("local", "ray")
Begin = Callable[[int, int], Advance]  # takes the number of images, and of those that are labelled


@dataclass(frozen=True)
class Request:
    """What `label` was asked for."""

    source: tuple[str, ...]
    out: Path
    options: Options = ON_CPU
    top: int = 5
    exif: bool = True
    engine: str = "local"
    workers: int | None = None
    resume: bool = False
    fast_decode: bool = False

    def check(self) -> None:
        """Raise InputError for what cannot be asked for, before anything is read."""
        if self.top < 0:
            raise InputError(f"top must be 1 or more, or 0 for all classes; received {self.top}.")
        if self.engine not in ENGINES:
            raise InputError(
                f"engine must be one of {', '.join(ENGINES)}; received {self.engine!r}."
            )
        if self.workers is not None and (self.engine != "ray" or self.workers < 1):
            raise InputError(
                f"workers must be 1 or more, and are those of engine ray; received {self.workers} "
                f"for engine {self.engine}."
            )
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise InputError("engine ray: Ray is not installed: pip install 'vggkeras[scale]'.")
        self.options.check()
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file: expected a folder to write, or a new one.")
        files.check_writable(self.out)


def label(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    top: int = 5,
    exif: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    resume: bool = False,
    fast_decode: bool = False,
) -> Labelled:
    """Label any number of images into a folder of Parquet files, a row an image.

    The folder gets part-000000.parquet and so on, of 1,024 rows each, with the columns image,
    class, probability, classes and probabilities (of the `top` most probable, or, with 0, the
    probabilities of all classes in the model's order), and error: why an image could not be read.
    Of a model of features the columns are image, features and error. _manifest.json says what the
    rows are of. A part is written when it is done, so a killed job is gone on with by `resume`,
    and ends with the bits of one that was not. Memory does not grow with the number of images.

    Args:
        source: image files, folders, patterns (`photos/*.jpg`), .csv or .parquet lists of paths,
            .parquet files with the images' bytes, or URLs (s3://, gs://, …) of all these.
        model: as for `vggkeras.load`; a file of features (`model.features.onnx`) gives those.
        out: the folder, new or empty, or one to go on with.
        top: how many classes in a row; 0 is all of them.
        exif: turn the images upright, as their EXIF data say.
        provider: as for `vggkeras.load`; every worker has it, or the job stops.
        threads: CPU threads of one operation; by default one for every core, and 1 a worker.
        engine: local: this process; ray: Ray's actors, here or, where RAY_ADDRESS names one, on a
            cluster whose machines share the folder, the source and the model.
        workers: of Ray; by default as many as fit on the cores, or GPUs.
        resume: go on with a folder that is there already.
        fast_decode: decode large JPEGs reduced, as training does.

    Raises:
        InputError (a ValueError): no image, or two with one id; a folder that is there, is being
            written, or is of another model, source or flag (each named); a model that cannot be
            loaded; Ray is not installed, or a worker has not the provider.
    """
    several = [source] if isinstance(source, str | os.PathLike) else source
    source = tuple(map(str, several))
    how = top, exif, engine, workers, resume, fast_decode
    request = Request(source, Path(out), Options(provider, threads), *how)

    def load(asked: Options) -> Predictor:
        return runtimes.load(model, asked.provider, threads=asked.threads)

    return run(request, load, lambda total, done: lambda more: None)


def run(
    request: Request,
    load: Callable[[Options], Predictor],
    begin: Begin,
    unread: Counter[str] | None = None,
) -> Labelled:
    """Do what `label` was asked for.

    Args:
        request: what.
        load: loads the model.
        begin: is told how many images there are and how many are labelled, and returns what is
            told of each number more.
        unread: counts the files of folders that are no images, by suffix.
    """
    request.check()
    out, options = request.out, request.options
    on_ray = request.engine == "ray"
    if on_ray:
        options = replace(options, threads=options.threads or 1)
    with locks.locked(out), files.claimed(out):
        before = _begun(out, request.resume)
        index = files.partial(out / manifests.INDEX)
        source = sources.load(request.source, index, unread)
        # Ray's workers load it on a GPU, which need not be possible here.
        away = on_ray and options.provider in ON_GPU
        predictor = load(replace(options, provider="cpu", batch_sizes=()) if away else options)
        labeller = Labeller(predictor, request.top, exif=request.exif, fast=request.fast_decode)
        names = [column.name for column in columns(predictor, request.top)]
        asked = request.top, request.exif, request.fast_decode
        manifest = Manifest.of(predictor, source, names, *asked)
        sizes = options.batch_sizes
        manifest = replace(manifest, provider=options.provider, batch_sizes=sizes)
        if before and (changed := before.differences(manifest)):
            first = manifests.first_change(out / manifests.INDEX, index)
            raise InputError(
                f"{out} cannot be gone on with: {'; '.join(changed)}{first}. Ask for what it is "
                "of, or give another folder."
            )
        if index.exists():
            files.move(index, out / manifests.INDEX)
        if before is None:
            manifest.write(out)
        source = sources.moved(source, index, out / manifests.INDEX)
        job = Job(out.absolute(), source, manifest, options)
        missing = job.missing()
        begun = manifest.images - sum(len(manifest.rows_of(number)) for number in missing)
        advance = begin(manifest.images, begun)
        if on_ray and missing:
            from vggkeras.batch import on_ray as engine

            engine.write_parts(job, predictor.path, missing, request.workers, advance)
        else:
            write_parts(job, labeller, missing, advance)
        return summary(job, begun)


def _begun(out: Path, resume: bool) -> Manifest | None:
    """Return the manifest of a folder that is to be gone on with; None where it is empty.

    Raises:
        InputError (a ValueError): it is there, and is not to be gone on with, or not of labels.
    """
    before = Manifest.read(out)
    if before is not None and not resume:
        raise InputError(
            f"{out} is there already, with labels of {before.images:,} images: pass --resume to go "
            "on where they end, or give another folder."
        )
    left = [path.name for path in locks.others_in(out) if not path.name.startswith(files.PARTIAL)]
    if before is None and set(left) - {manifests.INDEX}:
        raise InputError(
            f"{out} is a folder of other files, such as {min(left)}: expected a new or an empty "
            "one for labels, or the path of a .csv, .jsonl or .parquet file."
        )
    return before
