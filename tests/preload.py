"""What the fork server imports before the first worker is forked: torch, the test tools, and all of this library.

Something that cannot be imported is left to the test that needs it: there the error is seen.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

# torch._dynamo because every optimizer imports it when it is made: two seconds that each worker would spend otherwise.
for name in ("numpy", "torch", "torch.distributed", "torch._dynamo", "hypothesis", "pytest", "tests.worker"):
    importlib.import_module(name)

for package in ("scaling.core", "scaling.transformer"):
    with suppress(Exception):
        library = importlib.import_module(package)
        for public in library.__all__:
            with suppress(Exception):
                getattr(library, public)  # names are loaded when they are first used
