"""`meristem data`: a description of a recipe's data."""

from __future__ import annotations

from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import RecipeFile
from meristem.cli.progress import step


def data(recipe: RecipeFile) -> Answer:
    """Prepare a recipe's data once for all nodes, and print documents, tokens, bytes per token and splits."""
    calm_libraries()
    from rich.console import Console
    from rich.table import Table

    from meristem.recipes.specs.schema import load_recipe

    loaded = load_recipe(recipe)
    with step("loading torch"):
        from meristem.recipes.describe import describe_data

    table = Table("what", "value", title=f"data of {recipe}")
    found = dict(describe_data(loaded.data))
    for what, value in found.items():
        table.add_row(what, value)
    Console().print(table)
    return Answer({"recipe": recipe, "data": found})
