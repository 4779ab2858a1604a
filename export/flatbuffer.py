"""Write TFLite's flatbuffer, with its buffers where the schema wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from export.operations import Constant

FILE_IDENTIFIER = b"TFL3"


def save(model: schema.ModelT, path: Path, weights: int) -> None:
    """Write a flatbuffer whose buffers are `Buffer`s; they hold about `weights` bytes."""
    # Large enough from the start, for it would grow by doubling.
    builder = flatbuffers.Builder(weights + (1 << 20))
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    with open(path, "wb") as file:
        file.write(memoryview(builder.Bytes)[builder.Head() :])


class Buffer(schema.BufferT):
    """A buffer on a 16-byte boundary, as TFLite's schema demands and the generated code forgets.

    Its content is read when it is packed.
    """

    def __init__(self, constant: Constant | None = None) -> None:
        """Make a buffer; without a constant, the empty one."""
        super().__init__()
        self.constant = constant

    def Pack(self, builder: Any) -> int:  # the generated code's name
        """Write the buffer, and return its offset."""
        count = self.constant.nbytes if self.constant else 0
        builder.StartVector(1, count, 16)
        builder.head -= count
        if self.constant:
            builder.Bytes[builder.head : builder.head + count] = self.constant.content().data
        vector = builder.EndVector()
        schema.BufferStart(builder)
        if count:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)
