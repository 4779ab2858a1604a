"""Find published models by name, through huggingface_hub's cache: hf:USER/NAME[@REV][:FILE].

    clf = vggkeras.load("hf:USER/NAME@v1:model.int8.onnx")

Only what a user gives is looked up, never what a file names. The repository must be one that
`python -m export --card` wrote: its certificate.json says which files were proven.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

from vggkeras import certificate, containers, files
from vggkeras.errors import InputError

PREFIX = "hf:"  # of data sets too: see `vggkeras.data.hub`
OWNED = r"[A-Za-z0-9][\w.-]*/[\w.-]+"  # USER/NAME
MODEL = re.compile(rf"{PREFIX}({OWNED})(?:@(\w(?:(?!\.\.)[\w./-])*))?(?::([^/\\:]+))?")
EXPECTED = "expected hf:USER/NAME, or hf:USER/NAME@REVISION, each with :FILE for one of several"
USUAL = "model.onnx"
BESIDE = "golden*.npz"  # the golden answers, for `export.verify`


def local(model: str | os.PathLike[str]) -> Path:
    """Return the path of a model on this machine: of hf:…, in huggingface_hub's cache.

    What is not in the cache is downloaded. Unless a commit is named, its commit is said on stderr.

    Args:
        model: any path, which is returned as it is; or hf:USER/NAME[@REV][:FILE], where REV is a
            commit, a tag or a branch (main when not given), and FILE one of several files that
            were proven (model.onnx when not given, or the only one).

    Raises:
        InputError (a ValueError): no such repository, revision or file; the hub cannot be reached;
            the file is not the one that was proven, or has no seal, which `vggkeras.load` would
            compare it with; huggingface_hub is not installed.
    """
    spec = Path(model).as_posix()
    if not spec.startswith(PREFIX):
        return Path(model)
    match = MODEL.fullmatch(spec)
    if match is None:
        raise InputError(f"Unknown model {spec!r}: {EXPECTED}.")
    repository, revision, file = match.groups()
    folder = _snapshot(spec, repository, revision, certificate.CERTIFICATE)
    entries = {name: entry for name, entry in certificate.read(folder).items() if entry.passed}
    if not entries:
        raise InputError(
            f"{spec} has no certificate.json with a file that passed its proof: expected a "
            "repository that `python -m export --card` wrote; download any other file yourself."
        )
    name = file or usual(entries)
    if name not in entries:
        which = f"no {name} among" if name else "several"
        raise InputError(
            f"{spec} has {which} proven files: name one of {', '.join(entries)}, as in "
            f"hf:{repository}:{next(iter(entries))}."
        )
    commit = folder.name
    path = _snapshot(spec, repository, commit, name, f"{name}/*", BESIDE) / name
    if not path.exists():
        raise InputError(f"{spec}: {path} is not there: remove {folder}, and download it again.")
    if files.sha256(path) != entries[name].sha256:
        raise InputError(
            f"{path} is not the file that was proven (sha256): remove {folder} to download it "
            "again; if it differs then too, do not use it."
        )
    if not _has_a_seal(path):
        raise InputError(
            f"{path} has no seal inside, which every published file has: do not use it."
        )
    if revision != commit:
        print(f"{spec} is at commit {commit}: add @{commit} to stay with it", file=sys.stderr)
    return path


def _has_a_seal(path: Path) -> bool:
    """Return whether a file has the description and the seal that vggkeras writes."""
    try:
        members = containers.members_of(path)
    except containers.UNREADABLE:
        return False
    return bool(members.get(containers.DESCRIPTION) and members.get(containers.SEAL))


def usual(names: Collection[str]) -> str | None:
    """Return the file that is meant where none is named: model.onnx, or the only one."""
    return USUAL if USUAL in names else next(iter(names)) if len(names) == 1 else None


def _snapshot(spec: str, repository: str, revision: str | None, *patterns: str) -> Path:
    """Return the folder of a repository's commit in the cache, with the files of some patterns.

    Raises:
        InputError (a ValueError): see `local`.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise not_installed(spec, "huggingface_hub", "hub") from error
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[*patterns]
        )
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{spec}: the repository has no revision {revision}.") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{spec}: there is no such repository, or it is private: check the name, or log in "
            "with `hf auth login`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{spec} is not in the cache of this machine, and the hub cannot be reached "
            f"({one_line(error)}): download it where there is a network, or check the revision."
        ) from error
    except Exception as error:  # of the library, or of the network
        raise InputError(f"{spec} cannot be downloaded ({one_line(error)}).") from error
    return Path(found)


def not_installed(spec: str, library: str, extra: str) -> InputError:
    """Return the error of a library that a name on the hub needs."""
    return InputError(
        f"{spec} needs {library}, which is not installed: pip install 'vggkeras[{extra}]'."
    )


def one_line(error: Exception) -> str:
    """Return the beginning of a library's message, in one line."""
    return " ".join(str(error).split())[:200]
