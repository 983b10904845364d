"""Trains vision-language models to reason: SFT, then GRPO, in one readable program."""

import os
import sys

from ovlt.system import moved

__version__ = "0.2.0"

moved.install()
if sys.argv[0] == "-m" and "OVLT_DEVICE" not in os.environ:
    # ``python -m ovlt.X`` or ``torchrun -m ovlt.X``: Python is still looking for the module X, so
    # this is the last moment before torch is imported. ``ovlt X`` has set the environment already.
    from ovlt.system import env

    env.apply(env.machine())
