"""``python -m ovlt.cycle``: the same as ``ovlt cycle``."""

from ovlt.cycle.command import main

if __name__ == "__main__":
    main()
