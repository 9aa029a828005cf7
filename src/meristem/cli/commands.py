"""Re-exports `read_options` from `options`, under the name that scripts import."""

from meristem.cli.options import read_options

__all__ = ["read_options"]
