"""requirements.txt has the versions of constraints.txt, with hashes, of all that is needed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from sizes import ROOT


def pins(name: str) -> dict[str, str]:
    """Return package -> version of a file of pins."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", text, re.MULTILINE)
    return {re.sub("[-_.]+", "-", package).lower(): version for package, version in found}


def test_what_make_setup_installs_is_pinned_and_hashed():
    hashed, constraints = pins("requirements.txt"), pins("constraints.txt")
    both = hashed.keys() & constraints.keys()
    assert {p: hashed[p] for p in both} == {p: constraints[p] for p in both}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=;\s]", line)[0].lower().replace("_", "-") for line in needed}
    assert names <= hashed.keys(), "make requirements.txt anew: see docs/development.md"
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "://" not in text  # of no one's package index


def test_extras_that_packages_ask_of_each_other_are_pinned_with_them():
    # pip checks hashes of `coverage[toml]` only where the pin has the extra too: it would look for
    # the newest coverage, and refuse it.
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[\w.-]+(\[|==)", line)]
    pinned = {pin.name: pin.extras for pin in found}
    for package in pinned.keys() & {each.name for each in metadata.distributions()}:
        for text in metadata.requires(package) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.extras <= pinned.get(needed.name, set()), (package, text)
