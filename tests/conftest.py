"""Settings of the whole suite: drawn tests draw the same examples every time, and none fails for being slow.

One thread for torch, here and in the processes that tests start: tiny matrices gain nothing from a second one, and two
pools on two cores wait for each other (the parity tests took 47 s of processor time with it, 216 s without).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from hypothesis import settings

settings.register_profile("dragoman", derandomize=True, deadline=None)
settings.load_profile("dragoman")
