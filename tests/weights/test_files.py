"""Readers: common forms of files, what is damaged, and a pickle that would run code."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import narrow_keras_twin, ours, save_legacy, write
from safetensors.numpy import load_file

import vggkeras
from vggkeras import models
from vggkeras.card import ModelCard
from vggkeras.data import imagenet
from vggkeras.errors import InputError
from vggkeras.weights import files, identify, load


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", reason="torch is not installed: pip install 'vggkeras[torch]'"
    )


@pytest.mark.parametrize("form", ["legacy", "state_dict", "module"])
def test_the_common_forms_of_a_pth_file(state, form, torch):
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    if form == "legacy":
        torch.save(tensors, "net.pth", _use_new_zipfile_serialization=False)
    elif form == "state_dict":
        torch.save({"state_dict": tensors, "epoch": 3}, "net.pth")
    else:
        torch.save({f"module.{key}": value for key, value in tensors.items()}, "net.pth")
    source = identify.open_source("torchvision:net.pth")
    prefix = "module." if form == "module" else ""
    assert source.tensors["fc2"] == [f"{prefix}classifier.3.weight", f"{prefix}classifier.3.bias"]
    np.testing.assert_array_equal(source.read("fc2")[0], state["classifier.3.weight"].T)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, torch):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    torch.save({"features.0.weight": torch.zeros(1), "more": Code()}, "zip.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Code()))
    for name in ("zip", "plain"):
        with pytest.raises(InputError, match="refused and nothing of it was run"):
            identify.open_source(f"torchvision:{name}.pth")
    assert not (tmp_path / "it-ran").exists()
    pickle.loads(Path("plain.pth").read_bytes())
    assert (tmp_path / "it-ran").exists()  # it does run, where it is not refused


def test_a_pth_file_of_something_else_is_refused(torch):
    for content in ([1, 2], {"features.0.weight": 3}, torch.zeros(2)):
        torch.save(content, "net.pth")
        with pytest.raises(InputError, match="expected a state dict"):
            identify.open_source("torchvision:net.pth")


def test_only_a_pth_file_needs_torch(state, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    Path("net.pth").write_bytes(b"any")
    message = r"pip install 'vggkeras\[torch\]', or use a \.safetensors"
    with pytest.raises(InputError, match=message):
        identify.open_source("torchvision:net.pth")
    model = vggkeras.pretrained(write("net.safetensors", state))
    np.testing.assert_array_equal(
        model.get_layer("fc1").get_weights()[1], state["classifier.0.bias"]
    )
    with pytest.raises(InputError, match=message):
        vggkeras.save_weights(model, "torchvision:out.pth")
    assert not Path("out.pth").exists()


def test_half_precision_and_parts_of_a_tensor(state, monkeypatch):
    """What is not read at once goes to its place all the same."""
    monkeypatch.setattr(files, "PART", 5000)
    spec = write("net.safetensors", {key: value.astype(np.float16) for key, value in state.items()})
    model = vggkeras.pretrained(spec)
    kernel = state["classifier.0.weight"].astype(np.float16).astype(np.float32)
    expected = kernel.reshape(24, 64, 2, 2).transpose(2, 3, 1, 0)  # [O, C, H, W] -> [H, W, C, O]
    np.testing.assert_array_equal(model.get_layer("fc1").get_weights()[0], expected.reshape(-1, 24))
    vggkeras.save_weights(model, "timm:back.safetensors")
    back = load_file("back.safetensors")["pre_logits.fc1.weight"]
    np.testing.assert_array_equal(back.reshape(24, -1), kernel)


def test_other_kinds_of_numbers_are_refused(state):
    state["features.0.bias"] = np.zeros(8, np.uint8)
    with pytest.raises(InputError, match=r"features.0.bias is of type U8: expected float16"):
        identify.open_source(write("net.safetensors", state))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "h5", "weights.h5", "keras"])
def test_a_file_that_is_cut_short_is_damaged(state, suffix):
    spec = f"keras:net.{suffix}"
    if suffix == "safetensors":
        spec = write("net.safetensors", state)
    elif suffix == "pth":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, "net.pth")
        spec = "torchvision:net.pth"
    elif suffix == "keras":
        models.save_model(ours(), Path("net.keras"), ModelCard())
        spec = "net.keras"
    else:
        vggkeras.save_weights(ours(), spec)
    path = Path(f"net.{suffix}")
    whole = path.read_bytes()
    for kept in (0, 0.3, 0.99):
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(InputError, match="damaged"):
            identify.open_source(spec)


# ---- keras.applications' downloads


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """An empty KERAS_HOME, and no network."""

    def no_network(*_, **__):
        raise socket.gaierror("there is no network in this test")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "home"


def test_a_file_in_keras_cache_is_found_without_a_network(home):
    net = narrow_keras_twin(classes=1000)
    save_legacy(net, home / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels.h5")
    source = identify.open_source("keras:vgg16")
    assert (source.name, source.arch, source.classes) == ("keras:vgg16", "D", 1000)
    assert list(source.card.class_names) == imagenet.class_names()
    model = vggkeras.build("D", (64, 64, 3), 10, width=0.125, fc_units=24)
    copied = load.init_from(model, Path("keras:vgg16"), [str(i) for i in range(10)])
    assert copied["fc2"] == "keras:vgg16 fc2"
    kernels = (one.get_layer("fc2").get_weights()[0] for one in (model, net))
    np.testing.assert_array_equal(*kernels)
    assert load.explain(copied, source, model) == [
        "predictions starts anew: 1000 classes there, 10 here"
    ]


def test_with_neither_cache_nor_network_the_error_says_where_to_put_the_file(home):
    message = r"download .* and put it at .*home/models/vgg19_weights_tf_dim_ordering_tf_kernels"
    with pytest.raises(InputError, match=message):
        identify.open_source("keras:vgg19")
    assert not list((home / "models").iterdir())
