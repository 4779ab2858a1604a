"""An export's certificate.json: an entry a file says what was checked, where, and how it came out.

Every entry holds a digest of itself and one of the golden answers beside it, so that a changed
figure is found. It is no signature: who changes an entry can compute its digest, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggkeras import files, typed
from vggkeras.card import Form, form_of
from vggkeras.errors import InputError

CERTIFICATE = "certificate.json"
# Left out where there is none: what only some files say.
OPTIONAL = ("target", "calibration", "left_in_float", "processor")
DIGEST = "entry_sha256"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file's entry in certificate.json.

    The fields are JSON's, in their order. Those with a default are not in older certificates.
    """

    sha256: str
    bytes: int
    precision: str = "float32"
    target: str | None = None  # what alone an int8 file is for: tensorrt or npu
    runtime: str
    version: str
    provider: str | None = None
    threads: int | None = None
    tf32: bool = False
    input: dict[str, Any]  # name, type, shape
    output: dict[str, Any]
    features: int | None = None  # how many the file gives; None of other forms
    batch_sizes: list[int] = field(default_factory=list)  # that were tried
    sizes: list[list[int]] = field(default_factory=list)  # (height, width) of the images
    images: int | None = None
    max_abs_error: float | None = None  # None where it is infinite
    max_rel_error: float | None = None
    # This and all accuracies are None of features. Of boxes they are of the IoU with the true box,
    # above 0.5 or not, and errors are in px of the crop.
    top1_agreement: float | None = None
    smallest_cosine: float | None = None  # None of a classifier
    accuracy_reference: float | None = None
    accuracy_artifact: float | None = None
    mcnemar_p: float | None = None
    unoptimized_difference: float | None = None  # of int8 in ONNX
    tolerance: float | None
    most_lost: float | None = None
    least_agreement: float | None = None
    least_cosine: float | None = None
    top1_agreement_interval: tuple[float, float] | None = None
    accuracy_interval: tuple[float, float] | None = None
    calibration: dict[str, Any] | None = None  # of int8, as are the layers kept in float32
    left_in_float: list[str] | None = None
    processor: dict[str, Any] | None = None
    milliseconds: float | None = None  # median time of a call with one image
    evidence: str = "no stated images"  # which images these are
    model_sha256: str  # of the .keras file
    passed: bool
    failures: list[str]
    golden_sha256: str | None = None  # of golden.npz, or golden.FORM.npz
    entry_sha256: str | None = None  # the digest that was read; `to_json` computes it anew

    @property
    def form(self) -> Form:
        """What the file computes."""
        return form_of("height" in self.input["shape"], str(self.output["name"]))

    @classmethod
    def from_json(cls, name: str, value: Any) -> Entry:
        """Return what `to_json` wrote.

        Raises:
            ValueError: a field is missing or of another type, or anything was changed since.
        """
        entry = typed.instance(cls, value, name)
        is_older = DIGEST not in value and "golden_sha256" not in value
        if not is_older and value.get(DIGEST) != _digest(name, value):
            raise ValueError(f"{name}: changed since it was written")
        return entry

    def to_json(self, name: str) -> dict[str, Any]:
        """Return what certificate.json holds under a file's name."""
        fields = dataclasses.asdict(self)
        values = {k: v for k, v in fields.items() if v is not None or k not in OPTIONAL}
        return values | {DIGEST: _digest(name, values)}

    def path(self, folder: Path, name: str) -> Path:
        """Return where the file lies: under its name, or beside it where its proof failed."""
        return folder / (name if self.passed else f"{name}.rejected")


def read(folder: Path) -> dict[str, Entry]:
    """Return the entries of an export's files, by name; {} where there is no certificate.

    An export that was killed while its files took their places is finished first.

    Raises:
        InputError (a ValueError): it is damaged; or such an export cannot be finished here.
    """
    files.finish(folder)
    path = folder / CERTIFICATE
    if not path.is_file():
        return {}
    try:
        value = typed.parse(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("expected an object")
        entries = {name: Entry.from_json(name, entry) for name, entry in value.items()}
        if others := [name for name in entries if Path(name).name != name or not name.strip(".")]:
            raise ValueError(f"{others[0]!r} is no file's name")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): remove it and export again.") from error
    return entries


def text_of(entries: Mapping[str, Entry]) -> str:
    """Return the content of certificate.json."""
    return files.json_text({name: entry.to_json(name) for name, entry in entries.items()})


def _digest(name: str, values: Mapping[str, Any]) -> str:
    """Return the digest of an entry's values, whatever their order, and of the file's name."""
    others = {key: v for key, v in values.items() if key != DIGEST}
    return hashlib.sha256(json.dumps([name, others], sort_keys=True).encode()).hexdigest()
