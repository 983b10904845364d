"""``python -m ovlt.distill``: the same as ``ovlt distill``."""

from ovlt.distill.command import main

if __name__ == "__main__":
    main()
