"""Tables as they are on disk: read, described column by column, and encoded as numbers."""

from meristem.adaptive.tables.columns import Column, describe
from meristem.adaptive.tables.encoding import build_encoder, encode, load_encoder, save_encoder
from meristem.adaptive.tables.table import Table, open_table

__all__ = ["Column", "Table", "build_encoder", "describe", "encode", "load_encoder", "open_table", "save_encoder"]
