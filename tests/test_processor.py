"""The processor's name, which goes into every certificate."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vggkeras import processor


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere py-cpuinfo is asked")
def test_linux_says_it_without_a_child_process_that_would_stay_when_this_one_is_killed(monkeypatch):
    name, flags = processor._as_linux_says()
    if not name or not flags:
        pytest.skip("the kernel does not say it here")
    expected = processor.this_processor()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert processor.this_processor.__wrapped__() == expected
    assert name in str(expected)
