"""`python -m host.cli`: the same as `modelhost`."""

from __future__ import annotations

import sys

from host.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
