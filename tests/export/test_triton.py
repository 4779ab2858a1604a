"""A Triton repository: by Triton's own schema, of what is proven alone, version after version."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from rich.console import Console

import export.__main__ as export_command
from export import export_model, triton
from export.request import Request
from export.triton import Serving
from vggkeras import certificate, files
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.providers import Options

SCHEMA = Path(__file__).parent / "triton_model_config.pbtxt"
CARD = ModelCard(("cat", "dog"), (1.0, 2.0, 3.0), 224, 256, input_shape=(224, 224, 3), outputs=2)
SHA256 = "ab" * 32


@pytest.fixture(scope="module")
def schema() -> type:
    """Triton's ModelConfig."""
    file = text_format.Parse(SCHEMA.read_text(), descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


@pytest.fixture
def parsed(schema):
    """Return a function that reads a config.pbtxt strictly: parsed(text) -> ModelConfig."""
    return lambda text: text_format.Parse(text, schema())


def config(card: ModelCard = CARD, provider: str = "cpu", sizes: tuple[int, ...] = ()) -> str:
    return triton.config("digits", card, SHA256, Options(provider, batch_sizes=sizes))


def accelerators(model) -> dict[str, dict[str, str]]:
    gpu = model.optimization.execution_accelerators.gpu_execution_accelerator
    return {each.name: dict(each.parameters) for each in gpu}


def test_the_schema_is_that_of_tritons_client():
    client = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="pip install 'tritonclient[grpc]' compares"
    )
    theirs = descriptor_pb2.FileDescriptorProto()
    client.DESCRIPTOR.CopyToProto(theirs)
    assert text_format.Parse(SCHEMA.read_text(), descriptor_pb2.FileDescriptorProto()) == theirs


def test_a_field_that_triton_does_not_know_is_found(parsed):
    with pytest.raises(text_format.ParseError, match="no field named"):
        parsed(config() + "max_batch: 3\n")


def test_a_classifier_on_the_cpu(parsed):
    model = parsed(config())
    assert (model.name, model.backend, model.max_batch_size) == ("digits", "onnxruntime", 64)
    (images,), (output,), (group,) = model.input, model.output, model.instance_group
    assert (images.name, list(images.dims)) == ("images", [224, 224, 3])
    assert (output.name, list(output.dims)) == ("probabilities", [2])
    assert output.label_filename == "labels.txt"
    kind = type(images).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert (images.data_type, output.data_type) == (
        kind["TYPE_UINT8"].number,
        kind["TYPE_FP32"].number,
    )
    assert images.format == images.FORMAT_NHWC
    assert group.kind == group.KIND_CPU
    assert model.HasField("dynamic_batching")
    assert model.version_policy.latest.num_versions == 1
    assert not model.HasField("optimization")
    assert model.parameters["sha256"].string_value == SHA256
    assert model.parameters["resize"].string_value == CARD.resize


def test_any_size_and_features(parsed):
    dense = parsed(config(dataclasses.replace(CARD, form=Form.DENSE)))
    assert list(dense.input[0].dims) == [-1, -1, 3]
    assert dense.output[0].label_filename == "labels.txt"
    features = dataclasses.replace(CARD, form=Form.FEATURES, outputs=4096)
    model = parsed(config(features, "cuda"))
    assert (model.output[0].name, list(model.output[0].dims)) == ("features", [4096])
    assert not model.output[0].label_filename
    assert accelerators(model) == {"cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}


def test_cuda_and_the_batches_it_prefers(parsed):
    model = parsed(config(provider="cuda", sizes=(8,)))
    assert (model.max_batch_size, list(model.dynamic_batching.preferred_batch_size)) == (8, [8])
    (group,) = model.instance_group
    assert (group.kind, group.count) == (group.KIND_GPU, 1)
    # Triton fills no batch up, so it may form others than 8: none is captured as a CUDA graph.
    assert accelerators(model) == {"cuda": {"use_tf32": "0"}}


def test_tensorrt_with_one_profile_and_kept_engines(parsed):
    half = dataclasses.replace(CARD, precision="float16")
    model = parsed(config(half, "tensorrt", (64, 8)))
    assert accelerators(model) == {
        "tensorrt": {
            "precision_mode": "FP16",
            "trt_engine_cache_enable": "true",
            "trt_engine_cache_path": f"/tmp/vggkeras-tensorrt/{SHA256}",
            "trt_engine_cache_prefix": "vggkeras",
            "trt_timing_cache_enable": "true",
            "trt_timing_cache_path": "/tmp/vggkeras-tensorrt",
            "trt_profile_min_shapes": "images:1x224x224x3",
            "trt_profile_opt_shapes": "images:8x224x224x3",
            "trt_profile_max_shapes": "images:64x224x224x3",
        },
        "cuda": {"use_tf32": "0"},
    }
    assert model.optimization.graph.level == 2  # the graph reaches TensorRT as it was written
    assert model.max_batch_size == 64
    signed = dataclasses.replace(CARD, precision="int8", target="tensorrt")
    named = accelerators(parsed(config(signed, "tensorrt")))["tensorrt"]
    assert named["precision_mode"] == "INT8"
    assert not any("profile" in key for key in named)


@pytest.fixture
def exported(run, exports, tmp_path) -> Path:
    """A copy of a run, with its exported and proven files."""
    shutil.copytree(run.path, tmp_path / "my-run")
    shutil.copytree(exports, tmp_path / "my-run" / "export", dirs_exist_ok=True)
    return tmp_path / "my-run"


def write(model: Path, repository: Path, provider: str = "cpu", **asked) -> list[Path]:
    serving = Serving(repository, provider, asked.pop("batch_sizes", ()))  # type: ignore[arg-type]
    return triton.write(Request(model=model, **asked), serving, Console(quiet=True))


@pytest.mark.integration
def test_a_repository_holds_the_proven_file(exported, tmp_path, parsed, command, predictors_of):
    code, out, err = command(
        export_command.cli, "--triton", tmp_path / "models", "--model", exported
    )
    assert code == 0, err
    folder = tmp_path / "models" / "my-run"
    assert "my-run/1: " in out.replace("\n", "")
    inside = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert inside == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "labels.txt").read_text().split() == [str(i) for i in range(10)]
    entry = certificate.read(exported / "export")["model.onnx"]
    assert files.sha256(folder / "1" / "model.onnx") == entry.sha256
    model = parsed((folder / "config.pbtxt").read_text())
    assert model.name == folder.name
    assert model.parameters["sha256"].string_value == entry.sha256
    # What the configuration says is what ONNX Runtime finds in the file, the batch left out.
    session = ort.InferenceSession(
        str(folder / "1" / model.default_model_filename), providers=["CPUExecutionProvider"]
    )
    for said, found in ((model.input, session.get_inputs()), (model.output, session.get_outputs())):
        assert [each.name for each in said] == [each.name for each in found]
        assert list(said[0].dims) == list(found[0].shape[1:])
        assert isinstance(found[0].shape[0], str)
    images = np.zeros((3, *model.input[0].dims), np.uint8)
    (answers,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_array_equal(answers, predictors_of(exported)(images))


@pytest.fixture
def predictors_of():
    import vggkeras

    return lambda run: vggkeras.load(run / "export" / "model.onnx")


@pytest.mark.integration
def test_the_same_file_keeps_its_version_and_another_is_the_next(exported, tmp_path, parsed):
    repository = tmp_path / "models"
    assert write(exported, repository) == [repository / "my-run" / "1"]
    assert write(exported, repository, "cuda", batch_sizes=(4,)) == [repository / "my-run" / "1"]
    model = parsed((repository / "my-run" / "config.pbtxt").read_text())
    assert model.max_batch_size == 4
    first = files.sha256(repository / "my-run" / "1")
    export_model(exported, "onnx", images=10, opset=17)  # the same network in another file
    assert write(exported, repository) == [repository / "my-run" / "2"]
    assert files.sha256(repository / "my-run" / "1") == first
    (repository / "my-run" / "10").mkdir()  # no version: it has no file
    assert write(exported, repository) == [repository / "my-run" / "2"]


def again(exported: Path, **changes) -> None:
    """Make the certificate name another file, as another export would."""
    path = exported / "export" / "model.onnx"
    with open(path, "ab") as file:
        file.write(b"\x72\x00")  # an empty metadata_props
    entries = certificate.read(exported / "export")
    entries["model.onnx"] = dataclasses.replace(
        entries["model.onnx"], sha256=files.sha256(path), **changes
    )
    certificate_file = exported / "export" / certificate.CERTIFICATE
    certificate_file.write_text(certificate.text_of(entries))


@pytest.mark.integration
def test_what_is_not_proven_is_refused(exported, tmp_path):
    repository = tmp_path / "models"

    def refused(message: str, model: Path = exported, provider: str = "cpu", **asked) -> None:
        with pytest.raises(InputError, match=message):
            write(model, repository, provider, **asked)

    refused(r"has no model\.int8\.onnx: export it first: .*--precision int8`", precision="int8")
    refused(r"has no model\.dense\.onnx: .* --dense`", dense=True)
    refused("runs in ONNX Runtime; received --format tflite", format="tflite")
    refused("expected provider cuda or tensorrt with them", batch_sizes=(8,))
    with pytest.raises(InputError, match="a file, not a folder; give another path"):
        write(exported, exported / "run.json")
    spaced = shutil.copytree(exported, tmp_path / "my run")
    refused("cannot be a model of Triton's", spaced)
    again(exported, passed=False, failures=["values: far off"])
    refused("failed its proof: values: far off")
    again(exported, passed=True, failures=[], model_sha256="0" * 64)
    refused("is of another model than the run's")
    sha256 = hashlib.sha256((exported / "model.keras").read_bytes()).hexdigest()
    again(exported, model_sha256=sha256)
    with open(exported / "export" / "model.onnx", "ab") as file:
        file.write(b"\x72\x00")
    refused(r"is not the file that was proven \(sha256\)")
    assert not repository.exists()


@pytest.mark.integration
def test_another_model_is_no_version_of_this_one(exported, tmp_path):
    repository = tmp_path / "models"
    (repository / "my-run").mkdir(parents=True)
    (repository / "my-run" / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no version of a model"):
        write(exported, repository)
    (repository / "my-run" / "1").mkdir()
    (repository / "my-run" / "1" / "model.onnx").write_bytes(b"another")
    with pytest.raises(InputError, match="holds a model of other images or classes"):
        write(exported, repository)
    assert sorted(path.name for path in (repository / "my-run").iterdir()) == ["1", "notes.txt"]


def test_int8_goes_where_it_can_be_computed():
    int8 = dataclasses.replace(CARD, precision="int8")
    signed = dataclasses.replace(int8, target="tensorrt")
    path = Path("model.int8.onnx")
    with pytest.raises(InputError, match="no int8 on CUDA"):
        triton._check_provider(path, int8, Options("cuda"))
    with pytest.raises(InputError, match="only symmetric int8"):
        triton._check_provider(path, int8, Options("tensorrt"))
    triton._check_provider(path, signed, Options("tensorrt", batch_sizes=(8,)))
    triton._check_provider(path, int8, Options("cpu"))
    dense = dataclasses.replace(CARD, form=Form.DENSE)
    with pytest.raises(InputError, match="takes images of any size"):
        triton._check_provider(path, dense, Options("cuda", batch_sizes=(8,)))


@pytest.mark.integration
def test_tritons_flags_need_triton(command):
    code, _, err = command(export_command.cli, "--provider", "cuda")
    assert (code, "give --triton DIR too" in err, err.count("\n")) == (2, True, 1)


@pytest.mark.integration
def test_flags_that_do_nothing_are_refused(exported, tmp_path):
    with pytest.raises(InputError, match="--triton exports nothing"):
        write(exported, tmp_path / "models", opset=17)
