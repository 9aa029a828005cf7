"""The name under which scripts know `read_options`; it lives in `options`."""

from meristem.cli.options import read_options

__all__ = ["read_options"]
