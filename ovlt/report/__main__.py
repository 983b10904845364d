"""Runs ``python -m ovlt.report``, the same as ``ovlt report``."""

import sys

from ovlt.__main__ import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
