"""What is printed while work goes on: bars on a terminal, elsewhere lines, never a long silence."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console as RichConsole

from vggkeras import terminal


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[terminal.Console, RichConsole], ids=["ours", "rich's"])
def log(request, clock):
    """A console that is no terminal."""
    return request.param(file=io.StringIO(), width=40, get_time=clock)


def lines(log) -> list[str]:
    return log.file.getvalue().splitlines()


def test_each_phase_and_each_silence_is_a_line(log, clock):
    with terminal.progress_bar(log) as bar:
        for number in bar.track(range(2000), description="reading my [photographs]/train"):
            clock.now = 1000 + number * 0.05  # two minutes in all, and 20 images a second
    assert lines(log) == [
        "reading my [photographs]/train: 2,000 images",
        "reading my [photographs]/train: 601 of 2,000 images (30%), 20 images/s, about 70 s left",
        "reading my [photographs]/train: 1,201 of 2,000 images (60%), 20 images/s, about 40 s left",
        "reading my [photographs]/train: 1,801 of 2,000 images (90%), 20 images/s, about 10 s left",
    ]


def test_other_lines_end_a_silence(clock):
    log = terminal.Console(file=io.StringIO(), get_time=clock)
    with terminal.progress_bar(log, "steps") as bar:
        task = bar.add_task("all epochs", total=100, completed=50)
        for epoch in range(4):
            clock.now += 20
            log.print(f"epoch {epoch}")
            bar.update(task, description=f"epoch {epoch + 1} of 9")
            bar.advance(task)
        clock.now += 40
        bar.advance(task)
    assert lines(log) == [
        "all epochs: 50 of 100 steps",
        *(f"epoch {epoch}" for epoch in range(4)),
        "epoch 4 of 9: 55 of 100 steps (55%), 0.0417 steps/s, about 18 min left",
    ]


def test_a_spinner_is_a_line_and_more_while_it_lasts(log, monkeypatch):
    monkeypatch.setattr(terminal, "SILENCE", 0.001)
    again = threading.Event()

    class File(io.StringIO):
        def write(self, text: str) -> int:
            if "so far" in text:
                again.set()
            return super().write(text)

    log.file = File()
    with terminal.plain(log).status("proving model.onnx, a file of which the name is long"):
        again.wait()
    first, second, *_ = lines(log)
    assert first == "proving model.onnx, a file of which the name is long"
    assert second == first + ": 0 s so far"


def test_work_that_is_not_announced_is_silent_while_it_is_short(log, clock):
    with terminal.progress_bar(log, announced=False) as bar:
        for number in bar.track(range(40), description="predict"):
            clock.now = 1000 + number
    assert lines(log) == ["predict: 31 of 40 images (78%), 1.03 images/s, about 9 s left"]


def test_on_a_terminal_there_are_no_lines(clock):
    shown = terminal.Console(file=io.StringIO(), force_terminal=True, get_time=clock)
    with terminal.progress_bar(shown) as bar:
        for _ in bar.track(range(3), description="reading"):
            clock.now += 31
    assert "3 images" not in shown.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_durations_are_words(seconds, text):
    assert terminal.duration(seconds) == text


def test_nothing_moves_on_the_terminal_of_a_notebooks_command(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks set it
    assert terminal.Console().is_terminal
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not terminal.Console().is_terminal
    assert terminal.Console(file=io.StringIO(), force_terminal=True).is_terminal
