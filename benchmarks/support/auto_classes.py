"""Every class that the auto mappings of transformers name."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class AutoClass:
    """A model class, the model type that it is built for, and the tasks whose mappings name it."""

    name: str
    model_type: str
    tasks: list[str] = field(default_factory=list)


def auto_classes() -> list[AutoClass]:
    """All of them, each once, in the order of their first task."""
    from transformers.models.auto import modeling_auto

    found: dict[str, AutoClass] = {}
    for mapping in sorted(name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES")):
        if not mapping.startswith("MODEL_"):
            continue
        task = task_of(mapping)
        for model_type, names in getattr(modeling_auto, mapping).items():
            for name in [names] if isinstance(names, str) else names:
                entry = found.setdefault(name, AutoClass(name, model_type))
                if task not in entry.tasks:
                    entry.tasks.append(task)
    return list(found.values())


def task_of(mapping: str) -> str:
    """ "image text to text" of MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES; "base model" of MODEL_MAPPING_NAMES."""
    middle = mapping.removeprefix("MODEL_").removesuffix("_MAPPING_NAMES").removesuffix("MAPPING_NAMES")
    return middle.removeprefix("FOR_").replace("_", " ").lower().strip() or "base model"
