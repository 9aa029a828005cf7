"""The tensors of a torch.distributed.checkpoint directory, read one at a time.

The index of the format is a pickle. An unpickler reads it that knows the classes of such an index and nothing
else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

from meristem.errors import MeristemError, first_line

INDEX = ".metadata"
Keys = tuple[Any, ...]  # the path of an entry: keys of nested dictionaries and places in lists
KNOWN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("collections", "OrderedDict"),
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "MetadataIndex", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype | torch.layout | torch.memory_format
        ):
            return getattr(torch, name)
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index of tensors needs")
        return super().find_class(module, name)


class DistributedTensors(FileSystemReader):
    """Reads one entry at a time. The index is read once, and nothing in it is run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with open(path / INDEX, "rb") as file:
                self.index: Metadata = _Unpickler(file).load()
            files = {info.relative_path for info in (self.index.storage_data or {}).values()}
            keys = self.index.state_dict_metadata
            self.paths: dict[str, Keys] = {key: (self.index.planner_data or {}).get(key, (key,)) for key in keys}
        except Exception as error:
            raise MeristemError(
                f"{path / INDEX} is not an index of a distributed checkpoint: {first_line(error)}"
            ) from error
        outside = [name for name in files if Path(name).name != name]
        missing = [name for name in files if not (path / name).is_file()]
        if outside or missing:
            what = (
                f"points outside its own directory: {outside[0]!r}"
                if outside
                else f"names {missing[0]}, which is not there"
            )
            raise MeristemError(f"{path / INDEX} {what}")
        self.index.storage_meta = StorageMeta()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index

    def is_bytes(self, key: str) -> bool:
        return isinstance(self.index.state_dict_metadata[key], BytesStorageMetadata)

    def placeholder(self, key: str) -> Tensor:
        entry: Any = self.index.state_dict_metadata[key]
        return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    def tensor(self, key: str) -> Tensor:
        like = self.placeholder(key)
        return self._load(key, torch.empty(like.shape, dtype=like.dtype))[key]

    def raw(self, key: str) -> io.BytesIO:
        return self._load(key, io.BytesIO())[key]

    def _load(self, key: str, into: Any) -> dict[str, Any]:
        state = {key: into}
        try:
            dcp.load(state, storage_reader=self, planner=_RawBytes(), no_dist=True)
        except Exception as error:
            raise MeristemError(f"{self.path}: {key} cannot be read: {first_line(error)}") from error
        return state


class _RawBytes(DefaultLoadPlanner):
    """Leaves everything that is not a tensor as bytes."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = value
