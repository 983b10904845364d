"""``torchrun -m ovlt.distill.rank``: one rank of one phase, which ``ovlt distill`` starts."""

from ovlt.__main__ import rank

if __name__ == "__main__":
    rank("distill")
