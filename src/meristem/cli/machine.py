"""A description of this machine in words."""

from __future__ import annotations

import platform
import sys


def machine() -> str:
    """The architecture, the device, and the versions of torch and Python."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{platform.machine()}, {device}, torch {torch.__version__}, Python {sys.version.split()[0]}"
