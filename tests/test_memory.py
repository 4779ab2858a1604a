"""What cannot fit in memory is refused with its size, before any memory is taken."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

import vggkeras
from vggkeras import configs, memory
from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.runtimes.providers import MOST_THREADS, Options
from vggkeras.training import devices


@pytest.fixture
def machine(monkeypatch):
    """Pretend that so many GB are available, and no GPU."""

    def pretend(gigabytes: float) -> None:
        memory_ = SimpleNamespace(available=int(gigabytes * 1e9))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory_)
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))

    return pretend


@pytest.mark.parametrize(
    ("shape", "sizes", "amount"),
    [
        ((100_000, 100_000, 3), {}, "81.9 TB"),
        ((224, 224, 3), {"width": 1e9}, "over a million TB"),
        ((224, 224, 3), {"width": 1e300}, "over a million TB"),
        ((224, 224, 3), {"fc_units": 10**9}, "over a million TB"),
        ((32, 32, 3), {"fc_units": 1, "classes": 10**12}, "8.0 TB"),
    ],
)
def test_a_network_too_large_is_refused_with_its_size(machine, shape, sizes, amount):
    machine(24)
    with pytest.raises(InputError, match=f"needs {amount} .* has 24.0 GB available"):
        vggkeras.build("D", shape, **sizes)


def test_what_fits_is_not_refused(machine):
    machine(24)
    for batch, precision in ((256, "float32"), (512, "mixed_bfloat16")):
        recipe = vggkeras.Recipe("D", batch_size=batch, precision=precision)
        devices.check_memory(recipe, 224, 1000, 10**6)
    recipe = vggkeras.Recipe("D", batch_size=10**9)
    devices.check_memory(recipe, 224, 10, 100)  # a batch has no more than all images
    with pytest.raises(InputError, match=r"1000000000 images a step, needs 60,348.3 TB"):
        devices.check_memory(recipe, 224, 1000, 10**9)


def test_the_least_is_weights_gradients_momentum_and_activations():
    plan = list(configs.plan("D"))
    assert memory.needed_bytes(plan) == 4 * 138_357_544
    # By hand, Table 1's D: the maps of every convolution and pool, then three FC layers.
    maps = 2 * 224**2 * 64 + 112**2 * (64 + 256) + 56**2 * (128 + 768) + 28**2 * (256 + 1536)
    maps += 14**2 * (512 + 1536) + 7**2 * 512 + 2 * 4096 + 1000
    assert memory.needed_bytes(plan, 3, 10) == 3 * 4 * 138_357_544 + 10 * 4 * maps


@pytest.mark.parametrize(
    "line",
    [
        "train --data digits --image-size 100000",
        "train --data digits --width 1e9",
        "train --data digits --fc-units 1000000000",
        "benchmark --batch-size 1000000000",
        "benchmark --image-size 1000000 --scale 8000",
    ],
)
def test_commands_refuse_in_a_line(command, line):
    code, _, err = command(cli, *line.split())
    assert code == 2
    assert err.count("\n") == 1
    assert "of memory or more" in err or "scale must be" in err


def test_threads_are_bounded():
    Options(threads=MOST_THREADS).check()
    with pytest.raises(InputError, match=r"threads must be \d+ or less here; received 1000000"):
        Options(threads=1_000_000).check()
