"""What stays of a training that an error or a signal ends."""

from __future__ import annotations

import gc

import pytest
from helpers import Cut, CutAfter, tiny

from vggkeras.training.train import train


class Interrupt(CutAfter):
    """Ends a training as Ctrl-C does."""

    def on_train_batch_begin(self, batch, logs=None):
        try:
            super().on_train_batch_begin(batch, logs)
        except Cut:
            raise KeyboardInterrupt from None


@pytest.mark.parametrize("end", [pytest.param(CutAfter, marks=pytest.mark.slow), Interrupt])
def test_no_iterator_is_left_for_the_end_of_the_process(photos, tmp_path, end):
    """Its threads call Python, and wait for ever while that exits."""
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator

    gc.collect()
    before = [thing for thing in gc.get_objects() if isinstance(thing, OwnedIterator)]
    with pytest.raises((Cut, KeyboardInterrupt)) as caught:
        train(tiny(tmp_path / "out", data=str(photos), batch_norm=False), callbacks=[end(2)])
    left = [thing for thing in gc.get_objects() if isinstance(thing, OwnedIterator)]
    assert caught.value  # as where the error is shown, or explained
    assert len(left) <= len(before)
