"""Property tests look at fresh examples on a desk and at the same ones in CI, where a red run must mean a change."""

import os
import signal

from hypothesis import settings

# What a script starts with & ignores interrupts, and so does all that it starts; tests of interrupts need them.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("PYTEST_XDIST_WORKER"):
    # Workers share the cores; torch's threads would spend their time waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("CI"):
    settings.load_profile("ci")
