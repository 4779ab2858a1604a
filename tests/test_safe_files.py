"""Files are replaced in one step and kept from other processes, wherever those run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggkeras import exchange, files, locks
from vggkeras.errors import InputError

ANY = files.Kind("a list", lambda path: isinstance(json.loads(path.read_text()), list))


def killed(script: str, folder: Path) -> None:
    """Run a script in a process that ends by kill -9."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_process_of_another_container_keeps_its_file_though_its_number_is_equal_or_unknown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # that no process here has
    path = tmp_path / "a.json"
    with files.replacing(path) as mine:
        mine.write_text("mine")
        with files.replacing(path) as other:
            assert other != mine
            other.write_text("the other's")
        assert path.read_text() == "the other's"
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["a.json"]


HALF_WRITTEN = """
import os, signal
from pathlib import Path
from vggkeras import files, locks
with locks.locked(Path("x")), files.replacing(Path("x/a.json")) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_what_it_locked_is_free(tmp_path):
    killed(HALF_WRITTEN, tmp_path)
    assert len(names(tmp_path / "x")) == 3  # a lock, a claim, half a file
    with locks.locked(tmp_path / "x"):
        files.write_text(tmp_path / "x" / "b", "")
    assert names(tmp_path / "x") == ["b"]


def test_what_another_machine_left_is_swept_after_a_day_unless_it_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "machine", lambda: "0123abcd")
    with files.replacing(tmp_path / "model") as half:
        half.write_text("half")
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))
        monkeypatch.undo()
        files.sweep(tmp_path)
        assert half.exists()
    (tmp_path / "model").unlink()
    left = [tmp_path / f".partial-0123abcd-7-00000000{end}" for end in ("", "-model")]
    for path in left:
        path.touch()
    left.append(tmp_path / ".partial-7-saved_model")  # as earlier versions named it
    left[-1].mkdir()
    files.sweep(tmp_path)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (time.time() - 2 * files.FOREIGN_SECONDS,) * 2)
    files.sweep(tmp_path)
    assert names(tmp_path) == []


REPLACED = """
import os, signal, sys
from pathlib import Path
from vggkeras import exchange, files
renames = []
def rename(function, *paths):
    done = function(*paths)
    if paths:
        renames.append(paths)
    if len(renames) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
whole, plain = exchange.exchanged, os.rename
if {exchanges}:
    exchange.exchanged = lambda *paths: rename(whole, *paths)
else:
    exchange.exchanged = lambda *paths: False
    os.rename = lambda *paths: rename(plain, *paths)
with files.replacing(Path("model")) as beside:
    (beside / "variables").mkdir(parents=True)
    (beside / "variables" / "data").write_text("new")
"""


@pytest.mark.parametrize(
    ("exchanges", "number", "expected"),
    [(False, 1, "old"), (False, 2, "new"), (True, 1, "new")],
)
def test_a_folder_whose_replacing_is_killed_is_the_old_one_or_the_new_one(
    tmp_path, exchanges, number, expected
):
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model" / "variables" / "data").write_text("old")
    killed(REPLACED.format(exchanges=exchanges, number=number), tmp_path)
    files.sweep(tmp_path)
    assert (tmp_path / "model" / "variables" / "data").read_text() == expected
    assert names(tmp_path) == ["model"]


MOVED = """
import os, signal
from pathlib import Path
from vggkeras import exchange, files
left = [{number}]
def watched(function):
    def changed(*arguments, **options):
        done = function(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return changed
if not {exchanges}:
    exchange.exchanged = lambda *paths: False
for name in ("replace", "rename", "unlink", "rmdir"):
    setattr(os, name, watched(getattr(os, name)))
exchange.exchanged = watched(exchange.exchanged)
if {again}:
    files.finish(Path("x"))
with files.claimed(Path("x")):
    moves = dict((files.partial(Path("x", name)), Path("x", name)) for name in ("a", "model", "b"))
    for beside, path in moves.items():
        if path.name == "model":
            beside.mkdir()
        (beside / "data" if path.name == "model" else beside).write_text("new")
    files.move_all(moves)
"""


@pytest.mark.parametrize("exchanges", [False, True])
def test_files_that_are_moved_together_are_all_old_or_all_new_after_kills(tmp_path, exchanges):
    """At every change of the folder; and again, at every change, while the rest is moved."""
    folder, found = tmp_path / "x", []
    for number in range(1, 7):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "model").mkdir(parents=True)
        contents = [folder / "a", folder / "model" / "data", folder / "b"]
        for path in contents:
            path.write_text("old")
        killed(MOVED.format(number=number, exchanges=exchanges, again=False), tmp_path)
        if number % 2:
            killed(MOVED.format(number=1 + number // 2, exchanges=exchanges, again=True), tmp_path)
        files.finish(folder)
        (one,) = {path.read_text() for path in contents}
        found.append(one)
        files.sweep(folder)
        assert names(folder) == ["a", "b", "model"]
    assert set(found[1:]) == {"new"}


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="only these can")
def test_two_folders_are_exchanged_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name / name).mkdir(parents=True)
    assert exchange.exchanged(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        exchange.exchanged(tmp_path / "a", tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names what a descriptor is of")
def test_content_is_on_the_disk_before_its_name_and_the_name_before_all_that_follows(
    tmp_path, monkeypatch
):
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(beside, path):
        done.append("rename")
        replace(beside, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with files.replacing(tmp_path / "new" / "model") as beside:
        (beside / "variables").mkdir(parents=True)
        (beside / "variables" / "data").write_text("new")
        inside = [beside / "variables" / "data", beside / "variables", beside]
    assert done == [tmp_path, *inside, "rename", tmp_path / "new"]


def test_a_folder_is_one_commands_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locks.locked(folder) as new:
        assert new
        with (
            pytest.raises(InputError, match=rf"being written by process {os.getpid()} on .* since"),
            locks.locked(folder),
        ):
            pass
    assert names(tmp_path) == []  # nothing was written, and so nothing is left
    with locks.locked(folder):
        (folder / "model").touch()
    with locks.locked(folder) as new:
        assert not new
    assert names(folder) == ["model"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def without(descriptor):
        raise OSError(locks.NO_LOCKS[0], "Function not implemented")

    monkeypatch.setattr(locks, "_lock", without)
    lock = locks.locked(tmp_path / "a")
    with pytest.warns(UserWarning, match="without locks"):
        lock.__enter__()
    with files.replacing(tmp_path / "a" / "b") as beside:
        beside.write_text("b")
        files.sweep(tmp_path / "a")
    lock.__exit__(None, None, None)
    assert names(tmp_path / "a") == ["b"]


def test_only_a_file_of_the_same_kind_is_overwritten(tmp_path):
    path = tmp_path / "a.json"
    files.check_file(path, ANY)
    path.write_text("[]")
    files.check_file(path, ANY)
    for other in ("{}", "", "\xff"):
        path.write_text(other)
        with pytest.raises(InputError, match="is there already and is not a list"):
            files.check_file(path, ANY)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is there already"):
        files.check_file(path, ANY)


def test_nothing_is_written_into_a_saved_model_or_among_a_runs_checkpoints(tmp_path):
    files.write_json(tmp_path / "run" / "run.json", {})
    (tmp_path / "saved_model" / "variables").mkdir(parents=True)
    (tmp_path / "saved_model" / "saved_model.pb").touch()
    for folder in ("run/resume", "saved_model/variables"):
        with pytest.raises(InputError, match="which is no place for other files"):
            files.check_file(tmp_path / folder / "a.json", ANY)
    files.check_file(tmp_path / "run" / "a.json", ANY)
