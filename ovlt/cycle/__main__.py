"""``python -m ovlt.cycle``: the same as ``ovlt cycle``."""

import sys

from ovlt.__main__ import main

if __name__ == "__main__":
    main(["cycle", *sys.argv[1:]])
