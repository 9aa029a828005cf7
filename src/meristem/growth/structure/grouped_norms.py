"""Model classes with grouped norms. Meristem knows them, and checkpoints that need them ship them as one
file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from meristem.errors import MeristemError, nearest
from meristem.growth.structure import modeling_grouped

PREFIX = "grouped_"


@functools.cache
def grouped_class(model_class: type) -> tuple[type, type]:
    """The config and model class with grouped norms, registered with transformers' Auto classes.

    Args:
        model_class: a stock class. If it is grouped already, it is returned.
    """
    import transformers

    config_class = model_class.config_class  # type: ignore[attr-defined]
    if is_grouped(config_class.model_type):
        return config_class, model_class
    config_made, model_made = modeling_grouped.grouped(config_class, model_class)
    transformers.AutoConfig.register(config_made.model_type, config_made, exist_ok=True)
    for auto in _auto_classes(model_class):
        getattr(transformers, auto).register(config_made, model_made, exist_ok=True)
    return config_made, model_made


def is_grouped(model_type: Any) -> bool:
    """Whether this `model_type` of a config has grouped norms."""
    return str(model_type).startswith(PREFIX)


def grouped_config(config: Any, model_class: type, groups: Sequence[int]) -> Any:
    """The config of the network with norms over `groups` of units. It names the file that is shipped with
    it.
    """
    config_made, model_made = grouped_class(model_class)
    entries = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "auto_map")}
    made: Any = config_made(**{**entries, "norm_groups": "+".join(map(str, groups))})
    made.auto_map = own_code(model_made)
    made.architectures = [model_made.__name__]
    return made


def own_code(made: type) -> dict[str, str]:
    """The `auto_map` of a class with grouped norms. It names the file that is shipped with it, and no
    other.
    """
    stem = modeling_grouped.FILE.removesuffix(".py")
    auto_map = {"AutoConfig": f"{stem}.{made.config_class.__name__}"}  # type: ignore[attr-defined]
    stock = made.__mro__[1]
    return auto_map | dict.fromkeys(_auto_classes(stock), f"{stem}.{made.__name__}")


def known_class(entries: dict[str, Any]) -> type:
    """The model class of a config.json with grouped norms, made here. The checkpoint's own code is not run.

    Raises:
        MeristemError: if the config names no stock architecture.
    """
    import transformers

    named = entries.get("architectures")
    name = str(named[0] if isinstance(named, list) and named else named).removeprefix("Grouped")
    stock = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(stock, type) or not issubclass(stock, transformers.PreTrainedModel):
        known = (n for n in dir(transformers) if n.endswith(("LM", "Classification", "Generation")))
        raise MeristemError(f"its architecture {name!r} is not a model class of transformers; {nearest(name, known)}")
    return grouped_class(stock)[1]


def _auto_classes(model_class: type) -> list[str]:
    """The Auto classes with which users load this class."""
    from transformers.models.auto import modeling_auto

    tables = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    }
    return [auto for auto, names in tables.items() if model_class.__name__ in names.values()]
