"""Several hosts train as one: shares and padding, how they meet and differ, and real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import assert_same_end, history, last_checkpoint, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import vggkeras
from vggkeras.data.order import Share
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import Console
from vggkeras.training import meeting, optimizer
from vggkeras.training.hosts import Hosts, differences
from vggkeras.training.meeting import ADDRESSES, INDEX, NUMBER, Settings, meet
from vggkeras.training.pipeline import Crops, Padding, training_batches, validation_batches
from vggkeras.training.record import RunRecord
from vggkeras.training.runs import Run, facts

ROOT = Path(__file__).parents[2]


# Pure pieces


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_the_shares_of_the_hosts_are_all_rows_of_every_batch_in_order(hosts, rows, batches):
    shares = [Share(host, hosts, hosts * rows) for host in range(hosts)]
    for batch in range(batches):
        own = [s.position(batch * rows + row) for s in shares for row in range(rows)]
        assert own == list(range(batch * hosts * rows, (batch + 1) * hosts * rows))
        assert [[s.has(position) for s in shares].index(True) for position in own] == [
            host for host in range(hosts) for _ in range(rows)
        ]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_padding_fills_the_last_batch_and_every_image_is_read_once(count, hosts, each, rows):
    devices, batch = hosts * each, hosts * each * rows
    parts = [Padding.of(count, batch, devices, host, hosts) for host in range(hosts)]
    assert len({len(part.own) for part in parts}) == 1
    together: list[int] = []
    for start in range(0, len(parts[0].own), batch // hosts):
        together += [row for p in parts for row in p.own[start : start + batch // hosts]]
    assert together == list(range(len(together)))  # in order, as one host would have them
    assert len(together) % devices == 0
    assert 0 <= len(together) - count < devices
    assert parts[0].weight * count == pytest.approx(len(together))


def test_each_difference_is_named_with_its_hosts():
    assert differences([{"keras": "3.15.1", "seed": 0}] * 3) == []
    everyone = [{"keras": "3.15.1", "seed": 0}, {"keras": "3.14", "seed": 0, "a": 1}]
    assert differences([*everyone, everyone[0]]) == [
        "keras is '3.15.1' on host 0, 2 and '3.14' on host 1",
        "a is missing on host 0, 2 and 1 on host 1",
    ]


def test_facts_tell_recipes_data_and_libraries_apart_but_not_places(tmp_path, photos):
    data = vggkeras.load_data(str(photos))
    recipe = tiny(tmp_path / "a", data=str(photos))
    same = facts(tiny(tmp_path / "b", data="elsewhere"), data, False)
    before = facts(recipe, data, False)
    assert differences([before, same]) == []
    assert {"keras", "numpy", "tensorflow", "vggkeras", "learning_rate"} <= before.keys()
    path = photos / "train" / "cat" / "000.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    different = differences([before, facts(recipe, data, True)])
    assert [text.split(" is ")[0] for text in different] == [
        "--resume",
        "the digest of split train",
    ]


VARIABLES = {ADDRESSES: "10.0.0.1:9876", NUMBER: "2", INDEX: "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({INDEX: ""}, f"set {INDEX} as well"),
        ({ADDRESSES: "10.0.0.1"}, "HOST:PORT"),
        ({NUMBER: "two"}, "whole numbers"),
        ({INDEX: "2"}, "below"),
        ({ADDRESSES: "a:1,b:1,c:1"}, "3 addresses"),
    ],
)
def test_wrong_variables_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert meeting.settings(VARIABLES) == Settings("10.0.0.1", 9876, 2, 1)
    assert meeting.settings({}) is None
    with pytest.raises(InputError, match=message):
        meeting.settings(VARIABLES | changes)


def test_another_backend_is_single_host(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(InputError, match="single-host: set KERAS_BACKEND=jax"):
        vggkeras.train(tiny(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# The images of the hosts are those of one


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"mixup": 0.2, "randaugment": True}, marks=pytest.mark.full)]
)
def test_the_hosts_batches_are_the_parts_of_one_hosts(changes):
    split = vggkeras.load_data("digits").split("train")
    recipe = Recipe("A", "digits", batch_size=12, seed=3, **changes)
    crops = Crops(32, (37, 48), True, np.eye(3, dtype=np.float32))

    def batches(*share):
        data = training_batches(split, recipe, crops, 24, None, 10, *share)
        return list(data.take(3).as_numpy_iterator())

    parts = [batches(Share(host, 3, 12)) for host in range(3)]
    for step, whole in enumerate(batches()):
        for i in range(2):
            joined = np.concatenate([part[step][i] for part in parts])
            np.testing.assert_array_equal(joined, whole[i])


def test_padded_validation_has_the_figures_of_one_host():
    split = vggkeras.load_data("digits").split("validation").without(range(14, 360))
    model = vggkeras.build("A", (32, 32, 3), 10, width=0.05, fc_units=8, weight_decay=5e-4)
    recipe = Recipe("A", "digits")
    optimizer.compile_model(model, recipe)
    one = model.evaluate(validation_batches(split, 8, 32, 37), verbose=0, return_dict=True)
    optimizer.compile_model(model, recipe, padded=True)
    parts = [
        list(validation_batches(split, 8, 32, 37, padding=Padding.of(14, 8, 4, host, 2)))
        for host in range(2)
    ]
    rows = [
        [np.concatenate(pair) for pair in zip(*both, strict=True)]
        for both in zip(*parts, strict=True)
    ]
    assert [len(images) for images, _, _ in rows] == [8, 8]
    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        lambda: (tuple(batch) for batch in rows),
        output_signature=tuple(
            tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in rows[0]
        ),
    )
    together = model.evaluate(data, verbose=0, return_dict=True)
    # Sums of 14 float32 losses in another order: 14 roundings of 2**-24, relative.
    assert together == pytest.approx(one, rel=14 * 2**-24 * 2)


# How hosts meet, in threads of this process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def together(count: int, work, seconds: float = 20.0, numbers=None) -> list:
    """Let every host do work in a thread; return each one's result or InputError."""
    port, results = free_port(), [None] * count

    def host(index: int) -> None:
        console = Console(file=io.StringIO())
        try:
            wanted = Settings("127.0.0.1", port, (numbers or [count] * count)[index], index)
            hosts = meet(wanted, console, seconds)
            try:
                results[index] = work(hosts)
            except InputError as error:
                hosts.close(error)
                raise
            hosts.close()
        except InputError as error:
            results[index] = error

    threads = [threading.Thread(target=host, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_hosts_gather_and_the_first_one_works_for_all():
    card = vggkeras.card.ModelCard(("cat", "dog"))

    def work(hosts: Hosts):
        read = hosts.of_first(lambda: card if hosts.is_first else 1 / 0, type(card))
        return hosts.gather(hosts.index * 10), hosts.any_of([hosts.index == 2, False]), read

    assert together(3, work) == [([0, 10, 20], [True, False], card)] * 3


def test_hosts_that_differ_are_all_told_every_difference():
    def work(hosts: Hosts):
        hosts.agree({"keras": f"3.{hosts.index}", "seed": 0, "width": 1.0 + hosts.index})

    for error in together(2, work):
        assert "keras is '3.0' on host 0 and '3.1' on host 1" in str(error)
        assert "width is 1.0 on host 0 and 2.0 on host 1" in str(error)
        assert "seed" not in str(error)


def test_why_a_host_ended_is_told_to_the_others():
    def work(hosts: Hosts):
        if hosts.index == 2:
            raise InputError("x.jpg cannot be read")
        hosts.gather(None)

    errors = together(3, work)
    for error in errors[:2]:
        assert "host 2 ended (x.jpg cannot be read): start the command on every" in str(error)


@pytest.mark.slow
def test_hosts_that_do_not_come_are_named(monkeypatch):
    console = Console(file=io.StringIO())
    port, came = free_port(), []

    def second() -> None:
        with pytest.raises(InputError, match="Waited for host 1, 3 of 4") as error:
            meet(Settings("127.0.0.1", port, 4, 2), console, 20)
        came.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(InputError, match=f"Waited for host 1, 3 of 4.*{INDEX} set to its number"):
        meet(Settings("127.0.0.1", port, 4, 0), console, 2.5)
    thread.join(20)
    assert came
    with pytest.raises(InputError, match=f"the first host at 127.0.0.1:{port}, and in vain"):
        meet(Settings("127.0.0.1", port, 4, 1), console, 0.1)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} of this host, the first one, is in use"):
            meet(Settings("127.0.0.1", port, 2, 0), Console(file=io.StringIO()), 1)


def test_hosts_of_another_training_are_refused():
    first, second = together(2, lambda hosts: None, numbers=[2, 3])
    assert "a process that was started for 3 hosts" in str(first)
    assert "a process that was started for 3 hosts" in str(second)


# Real processes over loopback


def start(out: Path, count: int, *arguments, resume: bool = False):
    """Start the hosts of a training; one that is compiled once is so for all that come after."""
    variables = {ADDRESSES: f"127.0.0.1:{free_port()}", NUMBER: str(count)}
    flags = [*map(str, arguments), "--out", str(out), *(["--resume"] if resume else [])]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "vggkeras", "train", *flags],
            env=os.environ
            | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
            | {"JAX_COMPILATION_CACHE_DIR": f"{os.environ['XDG_CACHE_HOME']}/compiled"}
            | variables
            | {INDEX: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes) -> list[tuple[int, str]]:
    """Return the exit code and the output of each."""
    outputs = [process.communicate(timeout=1800)[0] for process in processes]
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


def trained(out: Path, count: int, *arguments, **options) -> Run:
    results = ended(start(out, count, *arguments, **options))
    assert [code for code, _ in results] == [0] * count, results
    return Run(out, RunRecord.read(out))


def flags(data, *more: str, epochs: int = 2) -> list[str]:
    text = f"--arch A --width 0.05 --fc-units 8 --image-size 32 --epochs {epochs} --batch-size 8"
    return [*text.split(), "--learning-rate", "0.3", "--data", str(data), *more]


def largest_difference(run: Run, other: Run) -> float:
    pairs = zip(last_checkpoint(run.path).arrays, last_checkpoint(other.path).arrays, strict=True)
    return max(float(np.abs(a.astype(float) - b).max(initial=0)) for a, b in pairs)


@pytest.mark.integration
@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, photos):
    (photos / "val" / "cat" / "000.jpg").unlink()  # a last batch that two do not divide
    one = trained(tmp_path / "one", 1, *flags(photos))
    two = trained(tmp_path / "two", 2, *flags(photos))
    assert two.record.hosts == 2
    # float32 sums of gradients in another order; four steps at a learning rate of 0.01.
    assert largest_difference(one, two) <= 1e-6
    for row, other in zip(history(one.path), history(two.path), strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in other.items()}, abs=2e-6
        )
    # The first host alone writes, and as much as one that trains alone.
    one_writes, two_write = (list((r.path / "tensorboard").rglob("events*")) for r in (one, two))
    assert len(one_writes) == len(two_write)


@pytest.mark.integration
@pytest.mark.full  # above, hosts are told why one ended, and in test_resume.py JAX resumes exactly
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_host_ends_all_and_the_run_goes_on_to_the_bit(tmp_path, photos, killed):
    arguments = flags(photos, "--batch-norm", epochs=6)
    whole = trained(tmp_path / "whole", 2, *arguments)
    out = tmp_path / "cut"
    processes = start(out, 2, *arguments)
    while not list((out / "resume").glob("*.npz")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[killed].send_signal(signal.SIGKILL)
    results = ended(processes)
    assert results[killed][0] == -signal.SIGKILL
    # JAX aborts the others where it notices sooner that the first host is lost.
    codes = {2} if killed else {2, -signal.SIGABRT}
    assert results[1 - killed][0] in codes, results
    assert json.loads((out / "run.json").read_text())["status"] != "done"
    assert_same_end(whole, trained(out, 2, *arguments, resume=True))


@pytest.mark.integration
@pytest.mark.full  # two processes, above
def test_four_processes_stop_together_and_another_number_goes_on(tmp_path, photos):
    arguments = flags(photos, epochs=3)
    one = trained(tmp_path / "one", 1, *arguments)
    out = tmp_path / "four"
    processes = start(out, 4, *arguments)
    while not list((out / "resume").glob("*.npz")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[2].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _ in results] == [130] * 4, results
    other = ended(start(out, 2, *arguments, resume=True))
    assert [code for code, _ in other] == [0, 0], other
    assert "was trained on 4 hosts, and goes on on 2" in " ".join(other[0][1].split())
    assert largest_difference(one, Run(out, RunRecord.read(out))) <= 1e-5


@pytest.mark.integration
@pytest.mark.full  # hosts that differ are told, above
def test_processes_whose_batch_hosts_do_not_divide_say_so(tmp_path, photos):
    out = tmp_path / "run"
    for code, output in ended(start(out, 3, *flags(photos))):
        assert code == 2, output
        assert "8 images cannot be divided evenly among 3 hosts" in " ".join(output.split())
    assert not out.exists()


@pytest.mark.integration
@pytest.mark.full  # test_two_processes_train_as_one does so with 16 images
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="no TensorFlow Datasets")
def test_imagenette_on_two_hosts_is_that_of_one(tmp_path):
    # In two large, careful steps: what rounding changes grows with every step of so deep a network.
    text = "--arch A --width 0.0625 --fc-units 32 --image-size 32 --batch-size 4734 --epochs 1"
    arguments = [*text.split(), "--learning-rate", "1e-4", "--data", "tfds:imagenette/160px-v2"]
    one = trained(tmp_path / "one", 1, *arguments)
    two = trained(tmp_path / "two", 2, *arguments)
    assert largest_difference(one, two) <= 1e-6
