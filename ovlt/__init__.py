"""Trains vision-language models to reason: SFT, then GRPO, in one readable program."""

import sys

from ovlt.system import moved

__version__ = "0.2.0"

moved.install()
if sys.argv[0] == "-m":
    # ``python -m ovlt.X`` or ``torchrun -m ovlt.X``: Python is still looking for the module X, so
    # this is the last moment before torch is imported.
    from ovlt.system import env

    env.apply(env.machine())
