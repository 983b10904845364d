"""``python -m ovlt.evaluate``: the same as ``ovlt evaluate``."""

from ovlt.evaluate.command import main

if __name__ == "__main__":
    main()
