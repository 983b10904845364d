"""``python -m ovlt.distill``: the same as ``ovlt distill``."""

import sys

from ovlt.__main__ import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
