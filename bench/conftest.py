"""Sets what must be there before torch is imported."""

import os
import sys
from pathlib import Path

from ovlt.system import env

env.apply(env.machine(), shared=True)
# ovlt's commands switch torch.compile off on a CPU (ovlt/system/env.py); here it is a peer.
os.environ.pop("TORCHDYNAMO_DISABLE", None)
# Last on the path, so that a peer's dependency never takes the place of ovlt's.
sys.path.append(os.environ.get("OVLT_PEERS", str(Path(sys.prefix) / "peers")))
