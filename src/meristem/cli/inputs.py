"""The inputs that `--inputs` names, for proofs on the user's data: a file of named tensors, or text in the
model's own tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meristem.errors import MeristemError, first_line

if TYPE_CHECKING:
    from torch import nn

    from meristem.checkpoints.source import Source

ROWS, LENGTH = 4, 128  # of a batch that is taken from text: sequences, and tokens in each


def inputs_for(given: str | None, source: str | Source, model: nn.Module) -> dict[str, Tensor] | None:
    """The inputs that `--inputs` names, as keyword arguments of the model's `forward`, or None if nothing is
    given.

    Args:
        given: a file of named tensors, or text or tokens as in recipes (`data.open_corpus`), of which the
            first sequences are used. The model's own tokenizer tokenises text.
        source: the directory or hub name of the model.
        model: the model.

    Raises:
        MeristemError: if the inputs cannot be read, or do not fit the model.
    """
    if given is None:
        return None
    if Path(given).suffix in READERS:
        return read_inputs(Path(given))
    from meristem.anatomy.inputs import reads_only_text

    if not reads_only_text(model):
        raise MeristemError(
            f"--inputs {given}: a {type(model).__name__} reads more than text, so its inputs are a {', '.join(READERS)} file of "
            "named tensors, all that its processor makes"
        )
    return _of_text(given, source, model)


def _of_text(given: str, source: str | Source, model: nn.Module) -> dict[str, Tensor]:
    from meristem.checkpoints.source import find_source
    from meristem.data import first_tokens

    config: Any = model.config
    text = config.get_text_config()
    length = min(LENGTH, getattr(text, "max_position_embeddings", None) or LENGTH)
    path = (find_source(source) if isinstance(source, str) else source).path
    tokens = torch.from_numpy(first_tokens(given, own_tokenizer(path), ROWS * length))
    if int(tokens.max()) >= text.vocab_size:
        raise MeristemError(
            f"--inputs {given} has token {int(tokens.max())}, and the model knows {text.vocab_size}: these are another tokenizer's"
        )
    rows = max(1, len(tokens) // length)
    ids = tokens[: rows * length].view(rows, -1)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}


def own_tokenizer(source: Path) -> str:
    """The directory of a model, which must contain a tokenizer.

    Raises:
        MeristemError: if it contains none.
    """
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return str(source)
    raise MeristemError(
        f"{source} holds no tokenizer; put its own there, or, for --data, name one with --tokenizer (bytes, or a Hugging Face "
        "tokenizer)"
    )


def read_inputs(file: Path) -> dict[str, Tensor]:
    """The arguments of `forward` by name, from a .safetensors, .npz or .json file ({"input_ids": [[1, 2,
    3]]}). Nothing is unpickled.

    Raises:
        MeristemError: if the file cannot be read, is of another kind, or holds no tensors.
    """
    if file.suffix not in READERS:
        raise MeristemError(f"inputs are a {', '.join(READERS)} file of named tensors, got {file}")
    try:
        inputs = READERS[file.suffix](file)
    except OSError as error:
        raise MeristemError(f"{file} cannot be read: {error.strerror or error}") from error
    except MeristemError:
        raise
    except Exception as error:
        raise MeristemError(f"{file} holds no named tensors: {first_line(error)}") from error
    if not inputs:
        raise MeristemError(
            f"{file} holds no tensors; it names the arguments of the network's forward, such as input_ids"
        )
    return {name: tensor.long() if tensor.dtype in UNSIGNED else tensor for name, tensor in inputs.items()}


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _npz(file: Path) -> dict[str, Tensor]:
    import numpy

    with numpy.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _json(file: Path) -> dict[str, Tensor]:
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
        raise MeristemError(
            f'{file} holds a {type(content).__name__} and no named tensors; write {{"input_ids": [[1, 2, 3]]}}, by the names of '
            "the network's forward"
        )
    return {name: torch.tensor(values) for name, values in content.items()}


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {".safetensors": _safetensors, ".npz": _npz, ".json": _json}
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # as in token files; no embedding takes them
