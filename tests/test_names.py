"""Names of files and classes: shown as they are, never obeyed, and refused where none can work."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
import rich.console
from helpers import photo, write_photos
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.table import Table

import vggkeras
from vggkeras import files, terminal
from vggkeras.__main__ import cli
from vggkeras.commands import predict, predictions
from vggkeras.commands.common import print_note
from vggkeras.errors import InputError, visible

HOSTILE = (
    "[edited]",
    "[/b]",
    "[link=x]y[/link]",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x9b2J",
    "a\u202eb",
)


def printed(show) -> str:
    """What a console of ours writes to a terminal, and one of rich's that a user gives."""
    texts = []
    for kind in (terminal.Console, rich.console.Console):
        file = io.StringIO()
        show(terminal.plain(kind(file=file, width=300, force_terminal=True, color_system=None)))
        texts.append(file.getvalue())
    assert texts[0] == texts[1]
    return texts[0]


@given(st.text(st.characters(exclude_categories=("Zs",), exclude_characters="\n\t"), min_size=1))
@example("[edited].png")
@example("[/b]")
@example(":smile:")
@example("\x1b]0;title\x07")
@example("\udcff")
def test_names_are_printed_as_they_are(name):
    shown = visible(name)
    assert shown.encode()  # UTF-8
    assert shown.isprintable() or not set(shown) & set("\x1b\x9b\x00\u202e")
    assert printed(lambda console: console.print(name, soft_wrap=True)) == f"{shown}\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_is_live_in_a_table_a_bar_or_a_status(name):
    def table(console):
        table = Table(title=name)
        table.add_column(name)
        table.add_row(name)
        terminal.print_table(table, console)

    def bar(console):
        with terminal.progress_bar(console) as bar:
            list(bar.track([1], description=name))
            bar.refresh()

    def status(console):
        with console.status(name):
            pass

    for show, times in ((table, 3), (bar, 1), (status, 1)):
        text = printed(show)
        assert text.count(visible(name)) >= times, show
        assert name.isprintable() or name not in text


def test_an_error_acts_on_no_terminal(command, tmp_path):
    code, _, err = command(cli, "predict", "\x1b[2J[/b].png", "--model", "\x1b]0;owned\x07")
    assert code == 2
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "\\u001b" in err


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_a_name_that_is_not_utf8_is_refused_before_images_are_read(tmp_path):
    for place in ("class", "file", "root"):
        root = tmp_path / place if place != "root" else tmp_path / os.fsdecode(b"r\xff")
        for name in ("cat", "dog"):
            write_photos(root / name, 20)
        if place == "class":
            os.rename(root / "cat", root / os.fsdecode(b"c\xff"))
        elif place == "file":
            os.rename(root / "cat" / "000.jpg", root / "cat" / os.fsdecode(b"\xff.jpg"))
        for skip in (False, True):
            with pytest.raises(InputError, match=r"udcff.*is not UTF-8.*rename"):
                vggkeras.load_data(str(root), skip_unreadable=skip)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "a\u202eb"])
def test_a_class_name_is_one_line_of_text(tmp_path, name):
    write_photos(tmp_path / "set" / name, 20)
    write_photos(tmp_path / "set" / "cat", 20)
    with pytest.raises(InputError, match="rename"):
        vggkeras.load_data(str(tmp_path / "set"))


def test_what_is_not_utf8_in_a_path_survives_json(tmp_path):
    path = os.fsdecode(b"r\xff\x1b")
    files.write_json(tmp_path / "x.json", {"path": path})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": path}


def test_predictions_of_hostile_names_are_shown(tmp_path, capsys, monkeypatch):
    Image.fromarray(photo(1)).save(tmp_path / "[b].png")
    prediction = predict.Prediction(tmp_path / "[b].png", ("[/b]", ":cat:"), (0.6, 0.4))
    text = printed(lambda console: console.print(predictions.predictions_table([prediction])))
    assert all(name in text for name in ("[b].png", "[/b]", ":cat:"))
    print_note("[/b] \x1b[2J")
    assert capsys.readouterr().out == "[/b] \\u001b[2J\n"
