"""Fuzz what reads files, with hypothesis: inputs that know the structure of what they damage.

Each attempt is a batch of inputs, so that hypothesis forgets those before: it keeps what it drew.
A failing input is made smaller, and printed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from machinery import REFUSALS, Case, Outcome, Trial

BATCH = 1000  # inputs that hypothesis draws at once

edits = st.lists(
    st.builds(
        damage.Edit,
        st.sampled_from(damage.KINDS),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 2),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3)
    ),
    max_leaves=4,
)


@dataclass(frozen=True)
class Target:
    """What is fuzzed: how hypothesis draws an input, how it is drawn fast, and what reads it."""

    drawn: st.SearchStrategy
    fast: Callable[[random.Random], Any]
    read: Callable[[Any], None]  # raises Accepted where a change is not noticed


class Accepted(AssertionError):
    """A change was not noticed."""


def fuzz(case: Case, target: Callable[[Case], Target], count: int = BATCH) -> Outcome:
    """Try a batch of inputs: hypothesis' own, or nine times of ten ones that are drawn faster."""
    aim, tried = target(case), 0
    rng = case.rng
    phases = (Phase.generate, Phase.shrink)

    @seed(case.seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(aim.drawn)
    def slowly(drawn: Any) -> None:
        attempt(drawn)

    def attempt(drawn: Any) -> None:
        nonlocal tried
        tried += 1
        try:
            aim.read(drawn)
        except Exception as error:
            if type(error).__name__ not in REFUSALS:
                error.add_note(f"{drawn!r}")
                raise

    failures: list[Exception] = []
    with contextlib.redirect_stdout(io.StringIO()):
        if case.index % 10 == 0:
            try:
                slowly()
            except Exception as error:
                failures.append(error)
        else:
            for _ in range(count):
                try:
                    attempt(aim.fast(rng))
                except Exception as error:
                    failures.append(error)
    if not failures:
        return Outcome(note="refused or harmless", inputs=tried)
    kind = "accepted change" if isinstance(failures[0], Accepted) else "traceback"
    return Outcome(kind, detail=_told(failures[0]), inputs=tried, times=len(failures))


def _told(error: BaseException) -> str:
    import traceback

    notes = " ".join(getattr(error, "__notes__", ()))
    return f"{notes[:700]} {''.join(traceback.format_exception(error))[-1500:]}"


def some_edits(rng: random.Random) -> list[damage.Edit]:
    """Return as many edits as hypothesis draws."""
    return [damage.random_edit(rng) for _ in range(rng.randint(1, 4))]


def changed(data: bytes, changes: list[damage.Edit]) -> bytes:
    """Return the data with all edits."""
    return functools.reduce(lambda content, edit: edit.apply(content), changes, data)


# ---- the card -----------------------------------------------------------------------------------


@st.composite
def _cards(draw: st.DrawFn, cards: list[dict[str, Any]]) -> dict[str, Any]:
    card = draw(st.sampled_from(cards))
    for _ in range(draw(st.integers(1, 3))):
        paths = damage.nodes(card)
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        value = draw(st.sampled_from(damage.VALUES) | json_values)
        card = damage.with_node(card, path, value, remove=draw(st.booleans()))
    return card


def cards(case: Case) -> Target:
    """Fuzz `ModelCard.from_json`: a card that it returns can be used and written."""
    from vggkeras.card import ModelCard

    texts = [(case.subject / "tiny" / name).read_text() for name in ("card.json", "about.json")]

    def read(value: dict[str, Any]) -> None:
        card = ModelCard.from_json(value, "a file")
        json.dumps(card.to_json())
        if card.input_shape is not None:
            json.dumps(card.to_description())
        _check_types(card)

    values = [json.loads(text) for text in texts]

    def fast(rng: random.Random) -> Any:
        value = rng.choice(values)
        for _ in range(rng.randint(1, 3)):
            value = damage.other_json(value, rng) if damage.nodes(value) else value
        return value

    return Target(_cards(values), fast, read)


def _check_types(card: Any) -> None:
    names = (*card.class_names, *card.skipped, *card.left_in_float)
    texts = (card.arch, card.data, card.pretrained, card.precision, card.pixels)
    for text in (*names, *texts):
        if not isinstance(text, str):
            raise Accepted(f"a text of {text!r}")
    for number in (card.scale, card.image_size):
        if number is not None and (type(number) is not int or number < 1):
            raise Accepted(f"a size of {number!r}")
    if not all(isinstance(mean, int | float) for mean in card.mean_rgb):
        raise Accepted(f"a mean of {card.mean_rgb!r}")


# ---- files with checksums -----------------------------------------------------------------------


def containers(case: Case) -> Target:
    """Fuzz what reads an exported file: its parts, description, golden answers and seal."""
    from export import artifact

    contents = {
        suffix: (case.subject / "tiny" / f"model{suffix}").read_bytes()
        for suffix in (".onnx", ".tflite")
    }

    def read(drawn: tuple[str, list[damage.Edit]]) -> None:
        suffix, changes = drawn
        path = case.scratch / f"model{suffix}"
        data = changed(contents[suffix], changes)
        path.write_bytes(data)
        if not artifact.read(path).changed and data != contents[suffix]:
            raise Accepted(f"{suffix} {changes}")

    suffixes = sorted(contents)
    drawn = st.tuples(st.sampled_from(suffixes), edits)
    return Target(drawn, lambda rng: (rng.choice(suffixes), some_edits(rng)), read)


def checkpoints(case: Case) -> Target:
    """Fuzz what reads checkpoints: it returns one that is whole, or says what is wrong."""
    from vggkeras.training import checkpoints as module

    folder = case.scratch / "resume"
    folder.mkdir()
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)]
    module.save(folder, 1, arrays, module.State(epoch=1, rows=[{"loss": 0.5}]))
    (path,) = module.newest_first(folder)
    good, _ = module.load(folder)
    content = path.read_bytes()
    assert good is not None

    def read(changes: list[damage.Edit]) -> None:
        path.write_bytes(changed(content, changes))
        found, _ = module.load(folder)
        if found is None:
            return
        same = len(found.arrays) == len(good.arrays) and found.state == good.state
        if not same or not all(map(np.array_equal, found.arrays, good.arrays)):
            raise Accepted(f"{changes}")

    return Target(edits, some_edits, read)


# ---- files without ------------------------------------------------------------------------------


def weights(case: Case) -> Target:
    """Fuzz what opens and identifies weight files: what is no weights file is said in one line."""
    from vggkeras.weights import identify

    sources = {
        "keras:{}/w.weights.h5": "w.weights.h5",
        "keras:{}/w.h5": "w.h5",
        "torchvision:{}/w.safetensors": "w.safetensors",
        "{}/tiny.keras": "tiny.keras",
    }
    contents = {name: (case.subject / "tiny" / name).read_bytes() for name in sources.values()}

    def read(drawn: tuple[str, list[damage.Edit]]) -> None:
        source, changes = drawn
        name = sources[source]
        (case.scratch / name).write_bytes(changed(contents[name], changes))
        found = identify.open_source(source.format(case.scratch))
        for layer in found.parts:
            found.read(layer)

    names = sorted(sources)
    drawn = st.tuples(st.sampled_from(names), edits)
    return Target(drawn, lambda rng: (rng.choice(names), some_edits(rng)), read)


# ---- the subject --------------------------------------------------------------------------------


def prepare_tiny(subject: Path) -> None:
    """Prepare the smallest network of Table 1 in every format, some ten kilobytes each."""
    import vggkeras
    from export import export_model
    from vggkeras import models
    from vggkeras.card import ModelCard

    folder = subject / "tiny"
    if (folder / "about.json").exists():
        return
    folder.mkdir(exist_ok=True)
    network = vggkeras.build("A", (32, 32, 3), 2, width=0.01, fc_units=2, seed=0)
    card = ModelCard(("cat", "dog"), (1.0, 2.0, 3.0), image_size=32, scale=37, arch="A")
    models.save_model(network, folder / "tiny.keras", card)
    export_model(folder / "tiny.keras", data="random", images=8, out=folder / "export")
    for suffix in (".onnx", ".tflite"):
        found = [*folder.glob(f"export/model{suffix}*")]
        shutil.copy(found[0], folder / f"model{suffix}")
    deep = vggkeras.build("D", (32, 32, 3), 2, width=0.01, fc_units=2, seed=0)
    for source in ("keras:{}/w.weights.h5", "keras:{}/w.h5", "torchvision:{}/w.safetensors"):
        vggkeras.save_weights(deep, source.format(folder))
    with zipfile.ZipFile(folder / "tiny.keras") as archive:
        (folder / "card.json").write_bytes(archive.read("vggkeras.json"))
    description = folder / "export" / "saved_model" / "assets.extra" / "vggkeras.json"
    (folder / "about.json").write_bytes(description.read_bytes())


def _trial(name: str, target: Callable[[Case], Target], batches: int, short: int) -> Trial:
    return Trial(f"fuzz-{name}", batches, short, lambda case: fuzz(case, target), prepare_tiny, 600)


# A million inputs in all.
TRIALS = (
    _trial("card", cards, 450, 4),
    _trial("containers", containers, 300, 2),
    _trial("checkpoints", checkpoints, 200, 2),
    _trial("weights", weights, 50, 1),
)
