"""The config and the model class of a source: those of transformers, one that Meristem makes or, if the user
trusts it, the source's own.
"""

from __future__ import annotations

from typing import Any

from meristem.checkpoints.source import Source, read_config
from meristem.errors import MeristemError, first_line
from meristem.growth.structure.grouped_norms import is_grouped, known_class, own_code


def architecture_of(source: Source, trust_remote_code: bool = False) -> tuple[type, Any]:
    """(model class, config) of a source.

    Args:
        source: the result of `find_source`.
        trust_remote_code: whether the checkpoint's own code may run.

    Raises:
        MeristemError: as `read_config`, and if transformers does not know the config or the class.
    """
    entries = read_config(source, trust_remote_code)
    if is_grouped(entries.get("model_type")):  # its modeling file is not run
        return _grouped(entries, source)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise MeristemError(
            f"{source}: its config is not one that transformers understands: {first_line(error)}"
        ) from error
    config.name_or_path = source.name
    model_class = _model_class(config, source, trust_remote_code)
    if all(cls.__module__.startswith("transformers.") for cls in (type(config), model_class)):
        vars(config).pop("auto_map", None)  # the native class needs no code
    return model_class, config


def _grouped(entries: dict[str, Any], source: Source) -> tuple[type, Any]:
    try:
        model_class = known_class(entries)
        own = {key: value for key, value in entries.items() if key not in ("auto_map", "architectures", "model_type")}
        config = model_class.config_class(**own)  # type: ignore[attr-defined]
        config.auto_map, config.architectures = own_code(model_class), [model_class.__name__]
    except Exception as error:
        raise MeristemError(f"{source}: its config is not a config of grouped norms: {first_line(error)}") from error
    config.name_or_path = source.name
    return model_class, config


def _model_class(config: Any, source: Source, trust_remote_code: bool) -> type:
    """The class that the checkpoint names in `architectures`."""
    import transformers

    names = config.architectures
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise MeristemError(f"{source}: config.json names no architecture, so its model class is unknown")
    auto_map = getattr(config, "auto_map", None)
    if trust_remote_code and isinstance(auto_map, dict):
        for auto_class, reference in auto_map.items():
            if isinstance(reference, str) and reference.split(".")[-1] == names[0]:
                return _class_of_its_own(reference, auto_class, source)
    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise MeristemError(f"{source}: transformers {transformers.__version__} has no model class {names[0]}")
    return found


def _class_of_its_own(reference: str, auto_class: str, source: Source) -> type:
    """A class in the checkpoint's own code. Its code is written next to the model, as stock transformers
    does.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        found: Any = get_class_from_dynamic_module(reference, str(source.path))
        found.register_for_auto_class(auto_class)
        return found
    except Exception as error:
        raise MeristemError(
            f"{source}: the class {reference} that it contains cannot be loaded: {first_line(error)}"
        ) from error
