"""Name where a model can compute; the commands' flags need no library for that."""

from __future__ import annotations

from typing import Literal, get_args

Provider = Literal["cpu", "cuda", "tensorrt", "mnn", "openvino"]  # mnn, openvino: other engines
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
ON_GPU = ("cuda", "tensorrt")
