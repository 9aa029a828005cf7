"""What was found where a model was expected, and what to do about it, in one sentence each."""

from __future__ import annotations

from pathlib import Path

from meristem.errors import MeristemError

ADAPTER = "adapter_config.json"
CONVERT = "load it with the library that wrote it and save it again with save_pretrained(DIRECTORY)"
WEIGHTS_ELSEWHERE = (  # pattern, what it is, what to do
    ("adapter_model.*", "a PEFT adapter", "merge it into its base model first (merge_and_unload)"),
    ("consolidated*.safetensors", "Mistral's own layout", "use the transformers files of this model (model.safetensors)"),
    ("model.*.safetensors*", "a variant of the weights",
     "load it with from_pretrained(..., variant=...) and save it again with save_pretrained(DIRECTORY)"),
    ("*.safetensors.index.json", "an index under another name", "rename it to model.safetensors.index.json"),
    ("*.safetensors", "weights under another name",
     "rename it to model.safetensors if it holds the whole model under transformers' names"),
    ("pytorch_model*.bin", "a pickle, which Meristem never opens",
     "load it with from_pretrained and save it again with save_pretrained(DIRECTORY)"),
    ("*.gguf", "a GGUF file, whose weights are quantised as a rule",
     "use the safetensors model that it was made from"),
    ("*.bin", "a pickle, which Meristem never opens", CONVERT),
    ("*.pt*", "a pickle, which Meristem never opens", CONVERT),
    ("*.ckpt", "a pickle, which Meristem never opens", CONVERT),
    ("*.h5", "TensorFlow's weights", CONVERT),
    ("*.msgpack", "Flax weights", CONVERT),
    ("*.onnx", "an ONNX graph", "use the model that it was exported from"),
)  # fmt: skip


def no_weights_here(path: Path) -> MeristemError:
    """The error about a directory without `model.safetensors` or its shards. Raises OSError if it cannot be
    listed.
    """
    for pattern, what, remedy in WEIGHTS_ELSEWHERE:
        found = sorted(entry.name for entry in path.glob(pattern))
        if found:
            return MeristemError(f"{path} has no model.safetensors (it has {found[0]}, {what}); {remedy}")
    return MeristemError(f"{path} has no safetensors weights (model.safetensors, or shards with their index)")


def no_model_here(path: Path) -> MeristemError:
    """The error about a path that is not a directory with a config.json. Raises OSError if it cannot be
    listed.
    """
    if not path.is_dir():
        named = next((f" ({what}: {do})" for p, what, do in WEIGHTS_ELSEWHERE if path.match(p)), "")
        return MeristemError(f"{path} is a file{named}; a model is a directory with config.json and safetensors files")
    if (path / "config.json").is_dir():
        return MeristemError(f"{path / 'config.json'} is a directory, and should be the file that describes the model")
    names = sorted(entry.name for entry in path.iterdir())
    found = ", ".join(names[:6]) or "nothing"
    missing = f"{path} is not a model directory: it has no config.json (found: {found})"
    below = [name for name in names if (path / name / "config.json").is_file()]
    if ADAPTER in names:
        return MeristemError(
            f"{path} is a PEFT adapter, not a model; merge it into its base model first (merge_and_unload)"
        )
    if "model_index.json" in names:
        return MeristemError(f"{missing}; it is a diffusers pipeline of {', '.join(below) or 'parts'}: name one part")
    if below:
        return MeristemError(f"{missing}; did you mean {path / below[-1]}?")
    elsewhere = next((f"{what}: {do}" for p, what, do in WEIGHTS_ELSEWHERE if list(path.glob(p))), "")
    return MeristemError(f"{missing}; it holds {elsewhere}" if elsewhere else missing)
