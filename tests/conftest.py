"""Property tests look at fresh examples on a desk and at the same ones in CI, where a red run must mean a change."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
