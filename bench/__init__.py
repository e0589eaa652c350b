"""What Weir costs, beside its floor and its peers, measured in one run on one machine."""

import os

# ONNX Runtime from 1.29 on reports to its maker unless this is set before it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
