"""A torch file to a .safetensors file and back, in a process of its own: torch's libraries and a pickle stay out of ours.

    python -P torch_file.py read WEIGHTS.pth OUT.safetensors
    python -P torch_file.py write IN.safetensors WEIGHTS.pth

Prints one JSON object: {} when done, {"refused": what} for a pickle that holds more than tensors, {"damaged": why}.
Numbers go over as float32, one tensor at a time.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import zipfile
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any


def read(source: Path, target: Path) -> dict[str, str]:
    """A state dict, perhaps in {"state_dict": …}; legacy files of torch.save before 1.6 too."""
    import torch

    try:
        found = torch.load(
            source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
        )
    except UnpicklingError as error:
        # Its words, of several versions: a global that is blocked or not allowed, or an operation that it does not know.
        refused = re.search(
            r"[^\n]*(unsupported|not an allowed|blocked)[^\n]*", str(error), re.IGNORECASE
        )
        return {"refused": refused[0]} if refused else {"damaged": str(error)}
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
    ) as error:
        return {"damaged": f"{type(error).__name__}: {error}"}
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict):
        return {
            "damaged": f"expected a state dict, names and their tensors; it holds a {type(found).__name__}"
        }
    for name, tensor in found.items():
        if not torch.is_tensor(tensor):
            return {
                "damaged": f"expected a state dict, names and their tensors; {name!r} is a {type(tensor).__name__}"
            }
    with open(target, "wb") as file:
        write_header(file, {str(name): tuple(tensor.shape) for name, tensor in found.items()})
        for tensor in found.values():
            file.write(tensor.detach().to(torch.float32).contiguous().reshape(-1).numpy().data)
    return {}


def write(source: Path, target: Path) -> dict[str, str]:
    """A state dict of a .safetensors file that `write_header` began."""
    import numpy as np
    import torch

    with open(source, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__")
    numbers = np.memmap(source, np.float32, "c", 8 + length)
    state = {}
    for name, entry in header.items():
        start, end = (place // 4 for place in entry["data_offsets"])
        state[name] = torch.from_numpy(numbers[start:end].reshape(entry["shape"]))
    torch.save(state, target)
    return {}


def write_header(file: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Begin a .safetensors file of float32 tensors, whose numbers are then written in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


if __name__ == "__main__":
    print(
        json.dumps(
            {"read": read, "write": write}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
        )
    )
