"""From the `data` section of a recipe to its task."""

from __future__ import annotations

from meristem.recipes.specs.data_specs import DataSpec, ImageSpec, PairSpec
from meristem.recipes.tasks.task import Task


def open_task(data: DataSpec) -> Task:
    """Read the data of a recipe.

    Raises:
        MeristemError: if the data are missing, or are not what the section says.
    """
    if isinstance(data, ImageSpec):
        from meristem.recipes.tasks.images import ImageClassification

        return ImageClassification(data)
    if isinstance(data, PairSpec):
        from meristem.recipes.tasks.text_to_text import TextToText

        return TextToText(data)
    from meristem.recipes.tasks import language

    tasks = {
        "causal-lm": language.CausalLanguage,
        "masked-lm": language.MaskedLanguage,
        "span-corruption": language.SpanCorruption,
        "ul2": language.PrefixDenoising if data.prefix_lm else language.MixtureOfDenoisers,
    }
    return tasks[data.task](data)
