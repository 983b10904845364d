"""``python -m ovlt.plan``: the same as ``ovlt plan``."""

import sys

from ovlt.__main__ import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
