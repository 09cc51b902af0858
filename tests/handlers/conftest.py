"""Before NumPy is imported: its threads wait in busy loops, which on a machine that is busy anyway only costs time."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
