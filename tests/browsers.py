"""A browser to open pages in, packages of npm, and a web server, where they can be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

UNREACHABLE = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
    "EHOSTUNREACH",
)


@contextmanager
def chromium(*arguments: str) -> Iterator:
    """Chromium of the system, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=executable, args=["--no-sandbox", *arguments])


def npm_install(command: str, folder: Path) -> Path:
    """Run a line `npm install ...` in a folder, and return its node_modules."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("JavaScript: there is no node and npm here")
    assert "--ignore-scripts" in command
    (folder / "package.json").write_text("{}")  # or npm would look for one in the folders above
    quiet = {
        "npm_config_fetch_retries": "0",
        "npm_config_audit": "false",
        "npm_config_update_notifier": "false",
    }
    child = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | quiet, capture_output=True, text=True
    )
    if child.returncode and any(code in child.stderr for code in UNREACHABLE):
        pytest.skip("JavaScript: npm cannot fetch packages here")
    assert child.returncode == 0, child.stderr
    return folder / "node_modules"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by Python's own server, and give its address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"http://[\d.]+:\d+/", line)
            assert address, line
            yield address[0]
        finally:
            server.terminate()
