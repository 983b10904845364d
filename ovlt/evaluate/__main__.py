"""``torchrun -m ovlt.evaluate``: one rank of ``ovlt evaluate``."""

from ovlt.__main__ import rank

if __name__ == "__main__":
    rank("evaluate")
