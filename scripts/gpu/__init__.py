"""What is measured of the GPU path, and what of it is checked without a GPU."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

COMPILING = {"gpu.probe", "gpu.compile"}  # also where nothing could run

if find_spec("triton") is None:
    sys.exit("the GPU's scripts need Triton: scripts/bootstrap --dev, or install chairlift[gpu]")
HAS_DEVICE = Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
# Read when Triton is imported, which is soon.
if "--tiny" in sys.argv and not COMPILING & {*sys.orig_argv} and not HAS_DEVICE:
    os.environ.setdefault("TRITON_INTERPRET", "1")
