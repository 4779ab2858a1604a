"""python -m export.compare FILE --reference FILE: two models of any make on the same images."""

from __future__ import annotations

import sys

from export.comparison import cli

if __name__ == "__main__":
    sys.exit(cli())
