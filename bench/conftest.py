"""What must be set before torch is imported."""

import os
import sys
from pathlib import Path

# ovlt's commands switch torch.compile off on a CPU (ovlt/system/env.py); here it is a peer.
os.environ.pop("TORCHDYNAMO_DISABLE", None)
# Behind everything else, so that a peer's dependency never takes the place of ours.
sys.path.append(os.environ.get("OVLT_PEERS", str(Path(sys.prefix) / "peers")))
