"""``python -m ovlt.report``: the same as ``ovlt report``."""

from ovlt.report.command import main

if __name__ == "__main__":
    main()
