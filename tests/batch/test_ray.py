"""Ray Data as the engine: the same bits, strict providers, silence, and nothing left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from many import COMMAND, Killing, is_worker, labelled

import vggkeras
from vggkeras.batch import on_ray

# Ray is imported by vggkeras alone, which decides where it listens.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="of the extra scale"),
]


@pytest.mark.slow
def test_ray_writes_the_same_bits_in_silence_on_the_loopback(whole, tables, model, tmp_path):
    out = tmp_path / "labels"
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--out", str(out)]
    job = psutil.Popen(
        [*COMMAND, *arguments, "--engine", "ray", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listening, seen = set(), {}
    while job.poll() is None:
        for process in job.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                seen[process.pid] = process
                listening |= {
                    connection.laddr.ip
                    for connection in process.net_connections("inet")
                    if connection.status == psutil.CONN_LISTEN
                }
        time.sleep(0.3)
    text, err = job.communicate()
    assert (job.returncode, err) == (0, "")
    assert "wrote 2,500 rows to" in text
    assert labelled(out) == labelled(whole)
    assert {p.name for p in out.iterdir()} == {*labelled(out), "_manifest.json"}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    gone, alive = psutil.wait_procs(list(seen.values()), timeout=30)
    assert gone
    assert not alive


def test_a_worker_says_what_it_has_not_and_how_it_differs(whole, tables, model, tmp_path):
    """In this process, as an actor: no GPU is here, and another file is no model of the job."""
    from vggkeras.batch import sources
    from vggkeras.batch.manifest import Manifest
    from vggkeras.batch.parts import Job
    from vggkeras.runtimes.providers import Options

    manifest = Manifest.read(whole)
    assert manifest is not None
    source = sources.load([f"{tables}/*.parquet"], tmp_path / "none")
    job = Job(tmp_path, source, manifest, Options(threads=1))
    batch = {"item": np.array([2])}
    assert on_ray.Worker(job, model)(batch) == {"images": [452], "failure": [""]}
    assert labelled(tmp_path)["part-000002.parquet"] == labelled(whole)["part-000002.parquet"]
    (failure,) = on_ray.Worker(replace(job, options=Options(threads=2)), model)(batch)["failure"]
    assert failure == "not as where the job was started: threads was 1, is 2"
    on_gpu = replace(job, options=Options("cuda", threads=1))
    (failure,) = on_ray.Worker(on_gpu, model)(batch)["failure"]
    assert failure.startswith("provider cuda: ONNX Runtime")


def test_a_worker_loads_what_the_driver_was_asked_for(whole, tables, model, tmp_path, monkeypatch):
    """What only GPUs have is passed on, and TensorRT computes without TF32."""
    from vggkeras import runtimes
    from vggkeras.batch import sources
    from vggkeras.batch.manifest import Manifest
    from vggkeras.batch.parts import Job
    from vggkeras.runtimes.providers import TF32_OVERRIDE, Options

    manifest, loaded = Manifest.read(whole), []
    assert manifest is not None
    load = runtimes.load

    def load_on_cpu(path, provider, **options):
        loaded.append((provider, options, os.environ.get(TF32_OVERRIDE)))
        return replace(load(path, threads=options["threads"]), provider=provider)

    monkeypatch.setattr(runtimes, "load", load_on_cpu)
    monkeypatch.setenv(TF32_OVERRIDE, "")  # so that it is put back afterwards
    monkeypatch.delenv(TF32_OVERRIDE)
    source = sources.load([f"{tables}/*.parquet"], tmp_path / "none")
    asked = replace(manifest, provider="tensorrt", batch_sizes=(1, 8))
    options = Options("tensorrt", threads=1, batch_sizes=(1, 8))
    assert on_ray.Worker(Job(whole, source, asked, options), model).failure == ""
    how = {"threads": 1, "trust_saved_model": False, "batch_sizes": (1, 8)}
    assert loaded == [("tensorrt", how, "0")]


@pytest.mark.full  # test_cpu_engines.py, without Ray
@pytest.mark.parametrize("provider", ["mnn", "openvino"])
def test_an_engine_of_processors_works_in_rays_workers(provider, tables, model, tmp_path):
    pytest.importorskip({"mnn": "MNN"}.get(provider, provider), reason=f"of the extra {provider}")
    images, here, out = f"{tables}/*.parquet", tmp_path / "here", tmp_path / "labels"
    vggkeras.label(images, model, here, provider=provider, threads=1)
    ray = [*COMMAND, images, "--model", str(model), "--out", str(out), "--engine", "ray"]
    subprocess.run([*ray, "--provider", provider], check=True, stdout=subprocess.DEVNULL)
    assert labelled(out) == labelled(here)


@pytest.mark.slow
def test_a_worker_without_the_provider_stops_the_job(tables, model, tmp_path):
    out = tmp_path / "labels"
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--out", str(out)]
    job = subprocess.run(
        [*COMMAND, *arguments, "--engine", "ray", "--provider", "cuda"],
        capture_output=True,
        text=True,
    )
    assert job.returncode == 2
    assert job.stderr.startswith("error: a worker of Ray stopped: provider cuda: ONNX Runtime")
    assert job.stderr.count("\n") == 1
    assert labelled(out) == {}


@pytest.mark.full
def test_ctrl_c_ends_ray_too(tables, model, tmp_path):
    out = tmp_path / "labels"
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--out", str(out)]
    job = psutil.Popen(
        [*COMMAND, *arguments, "--engine", "ray"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(map(is_worker, job.children(recursive=True))):
        time.sleep(0.1)
        assert job.poll() is None
    children = job.children(recursive=True)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    assert (job.returncode, err) == (130, "interrupted\n")
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.full  # test_label.py, without Ray
def test_killed_drivers_and_workers_lose_nothing(whole, tables, model, tmp_path):
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--threads", "1"]
    job = Killing([*arguments, "--engine", "ray"], tmp_path / "labels", whole, seed=0)
    for worker in (False, True):
        job.kill_once(0.5, worker=worker)
    if job.out.exists():
        job.finish()
    assert job.ended
    shutil.rmtree(job.out, ignore_errors=True)
