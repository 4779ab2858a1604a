"""Run `python -m export.compare FILE --reference FILE`: two models on the same images.

The code is in `export.comparison`: this module, once imported, hides the function of its name.
"""

from __future__ import annotations

import sys

from export.comparison import cli

if __name__ == "__main__":
    sys.exit(cli())
