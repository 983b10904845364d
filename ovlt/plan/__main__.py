"""``python -m ovlt.plan``: the same as ``ovlt plan``."""

from ovlt.plan.command import main

if __name__ == "__main__":
    main()
