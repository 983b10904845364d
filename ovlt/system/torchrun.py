"""``torchrun`` without a traceback of its own: a rank that fails has said why.

``python -m ovlt.system.torchrun`` takes torchrun's arguments and ends with the status of the rank
that failed first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; 0 if all ranks ended well."""
    # It reports each signal that it sends, and repeats what the summary said.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # killed, so it could not say anything
            print(f"rank {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
