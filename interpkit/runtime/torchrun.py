"""The environment variables of ``torchrun`` (or a similar scheduler), readable without importing torch."""

from __future__ import annotations

import os

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
RESTARTED = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
"""Whether this process was restarted after another one had ended."""
