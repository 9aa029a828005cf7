"""A description of a recipe's data, before training on them."""

from __future__ import annotations

from typing import Literal

from meristem.data.order import BLOCK, shares_of
from meristem.recipes.specs.data_specs import DataSpec
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.texts import Texts

SPLITS: tuple[Literal["train", "tune", "eval"], ...] = ("train", "tune", "eval")


def describe_data(data: DataSpec) -> dict[str, str]:
    """Prepare the data (text is tokenised into the cache) and return a description, each figure by its name.

    Raises:
        MeristemError: if the data are missing, or are not what the section says.
    """
    task = open_task(data)
    found = {"source": str(data.source), "task": data.task}
    texts = getattr(task, "texts", None)
    if texts is not None:
        found |= _of_texts(texts)
    else:
        parts = getattr(task, "images", None) or getattr(task, "pairs", None)
        for split in ("train", "tune", "eval"):
            found[f"{split}, examples"] = f"{len(getattr(parts, split)):,}"
    return {**found, "fingerprint": task.fingerprint[:16]}


def _of_texts(texts: Texts) -> dict[str, str]:
    corpora, found = texts.corpora, dict[str, str]()
    if len(corpora) > 1:
        shares = shares_of([part.weight for part in texts.data.parts])
        for number, (share, corpus) in enumerate(zip(shares, corpora, strict=True), start=1):
            found[f"source {number}"] = (
                f"{share / BLOCK:.1%}".replace("%", " %") + f" of the tokens read: {corpus.description}"
            )
    documents, size = ([getattr(corpus, name) for corpus in corpora] for name in ("documents", "bytes"))
    if None not in documents:
        found["documents"] = f"{sum(documents):,}"
    found["vocabulary"] = f"{corpora[0].vocab_size:,}"
    if None not in size:
        found["bytes of text"] = f"{sum(size):,}"
        found["bytes per token"] = f"{sum(size) / max(1, sum(corpus.tokens for corpus in corpora)):.3f}"
    for split in SPLITS:
        tokens = sum(len(getattr(corpus, split)) for corpus in corpora)
        found[f"{split}, tokens"] = f"{tokens:,} ({len(texts.windows(split)):,} sequences)"
    if texts.data.documents == "whole":
        places = len(texts.windows("train")) * texts.data.sequence_length
        found["sequences filled"] = f"{sum(len(corpus.train) for corpus in corpora) / places:.1%}".replace("%", " %")
    return found
