"""The documentation against the code: snippets, commands, names, links, the README's length."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tyro
from helpers import DOCS, README, REPOSITORY, photo
from PIL import Image

import vggkeras

pytestmark = pytest.mark.integration

PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "SECURITY.md",
    *sorted(DOCS.glob("*.md")),
]
MODULES = ("vggkeras", "export", "export.verify", "export.compare", "export.benchmark")
# Bash runs a block with no program to be found but this one, which writes down its arguments.
RECORD = """
command_not_found_handle() { :; }
python() { printf '%s\\037' "$@" >> "$RECORDED"; printf '\\036' >> "$RECORDED"; }
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*info: str) -> list[Block]:
    """Return the blocks of all pages whose first line says so, such as "python"."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(
            r"^( *)```(\w[\w ]*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL
        ):
            if match[2] in info:
                line = text.count("\n", 0, match.start()) + 1
                unindented = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
                found.append(Block(page, line, match[2], unindented))
    return found


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """Return what stands between backticks in a page's prose."""
    return re.findall(r"`([^`]+)`", prose(page))


def resolve(dotted: str) -> object:
    """Return what a dotted name stands for, or raise ImportError."""
    first, *names = dotted.split(".")
    value: object = importlib.import_module(first)
    for number, name in enumerate(names):
        try:
            value = getattr(value, name)
        except AttributeError:
            value = importlib.import_module(".".join([first, *names[: number + 1]]))
    return value


def recorded_commands(block: Block) -> list[list[str]]:
    """Return the arguments of every `python` of a shell block, as bash expands them."""
    bash, record = shutil.which("bash"), Path("recorded").resolve()
    if bash is None:
        pytest.skip("no bash here")
    environment = {"PATH": "/nonexistent", "RECORDED": str(record)}
    subprocess.run([bash, "-c", RECORD + block.text], env=environment, capture_output=True)
    text = record.read_text(encoding="utf-8") if record.exists() else ""
    return [line.split("\x1f")[:-1] for line in text.split("\x1e")[:-1]]


class Parsed(BaseException):
    """A command line was parsed without an error; nothing has run."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, list[str]], None]]:
    """Return a function that starts `python -m MODULE`, and raises Parsed after its parser."""

    def then_stop(function: Callable) -> Callable:
        @functools.wraps(function)
        def stopped(*arguments, **options):
            function(*arguments, **options)
            raise Parsed

        return stopped

    for owner, name in (
        (tyro, "cli"),
        (tyro.extras, "subcommand_cli_from_dict"),
        (argparse.ArgumentParser, "parse_args"),
    ):
        monkeypatch.setattr(owner, name, then_stop(getattr(owner, name)))
    monkeypatch.setenv("COLUMNS", "200")

    def parse(module: str, arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    before = signal.getsignal(signal.SIGTERM)
    yield parse
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def flags_of(parse) -> Callable[[str, str], set[str]]:
    """Return a function that gives a command's flags, by its help."""

    @functools.cache
    def flags_of(module: str, subcommand: str = "") -> set[str]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stop:
            parse(module, [subcommand, "--help"] if subcommand else ["--help"])
        assert not stop.value.code, f"python -m {module} {subcommand}"
        return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text.getvalue()))

    return flags_of


def subcommands() -> list[str]:
    """Return the commands of `python -m vggkeras` that the README's table has."""
    return re.findall(r"^\| `python -m vggkeras (\w+)", README.read_text("utf-8"), re.MULTILINE)


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("block", blocks("python", "python run"), ids=str)
def test_python_snippets_compile_and_name_what_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        for name in names:
            if name.split(".")[0] in ("vggkeras", "export"):
                resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_spans_name_what_exists(page):
    for span in code_spans(page):
        for name in re.findall(r"(?<![\w./-])((?:vggkeras|export)(?:\.[A-Za-z]\w*)+)", span):
            if not name.endswith(".json"):
                resolve(name)
        path = re.fullmatch(r"(?:vggkeras|export|tests|notebooks|docs|\.ci)/[\w./-]*", span)
        if path and "NAME" not in span:
            assert (REPOSITORY / span).exists(), span


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_of_shell_blocks_parse(block, parse, capsys):
    for arguments in recorded_commands(block):
        if arguments[0] == "-m" and arguments[1] in MODULES:
            try:
                parse(arguments[1], arguments[2:])
            except Parsed:
                continue
            except SystemExit:
                pytest.fail(f"python {shlex.join(arguments)}: {capsys.readouterr().err}")
        elif arguments[0] == "-c":
            compile(arguments[1], str(block), "exec")
        elif arguments[0].endswith(".py"):
            written = arguments[0] in page_files(block.page)
            assert written or (REPOSITORY / arguments[0]).exists(), arguments[0]


def page_files(page: Path) -> set[str]:
    """Return the files that a page's snippets name in their first line."""
    return set(re.findall(r"^```python\n# (\w+\.py)", page.read_text("utf-8"), re.MULTILINE))


OF_OTHERS = {  # of the campaign, pip, a benchmark and XLA
    *("--work", "--require-hashes", "--no-overlap", "--xla_force_host_platform_device_count"),
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_flags_of_code_spans_exist(flags_of):
    of_any = set().union(*(flags_of("vggkeras", name) for name in subcommands()))
    of_any |= set().union(*(flags_of(module) for module in MODULES[1:]))
    for page in PAGES:
        for span in code_spans(page):
            flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span)) - {"--help"}
            command = re.search(r"python -m (vggkeras (\w+)|export[\w.]*)", span)
            if command and command[2]:
                exist = flags_of("vggkeras", command[2])
            else:
                exist = flags_of(command[1]) if command else of_any
            assert flags <= exist | OF_OTHERS, (page.name, span)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    def anchors(text: str) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(prose(target)), link


def test_the_readmes_python_runs(monkeypatch, tmp_path):
    """The whole block, with one epoch of a smaller network."""

    def one_epoch(recipe: vggkeras.Recipe):
        return train(dataclasses.replace(recipe, epochs=1, width=0.05, fc_units=8))

    train = vggkeras.train
    monkeypatch.setattr(vggkeras, "train", one_epoch)
    for name, seed in (("a.jpg", 0), ("b.png", 1)):
        Image.fromarray(photo(seed)).save(tmp_path / name)
    (block,) = [block for block in blocks("python run") if block.page == README]
    names: dict[str, object] = {}
    exec(compile(block.text, str(block), "exec"), names)
    assert names["probabilities"].shape == (4, 10)
    assert names["rows"].shape == (2, 2 * 8)
    assert names["dense"].output_shape == names["scores"].output_shape == (None, None, None, 10)
    assert (tmp_path / "runs" / "digits" / "model.keras").exists()


def test_the_svms_python_runs():
    labels = np.repeat([0, 1], 60)
    rows = np.random.default_rng(0).normal(labels[:, None], 0.1, (120, 4)).astype(np.float32)
    (block,) = [block for block in blocks("python run") if block.page == DOCS / "features.md"]
    names = {"rows": rows, "labels": labels, "train_rows": rows, "train_labels": labels}
    names |= {"test_rows": rows, "test_labels": labels}
    exec(compile(block.text, str(block), "exec"), names)
    assert names["recall"].mean > 0.9
