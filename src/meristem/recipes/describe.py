"""What a recipe's data are: for whoever wants to know before training on them."""

from __future__ import annotations

from meristem.recipes.data_specs import DataSpec
from meristem.recipes.tasks import open_task


def describe_data(data: DataSpec) -> dict[str, str]:
    """Prepare the data (text is tokenised into the cache) and say what they are, each figure by its name.

    Raises:
        MeristemError: if they are not there, or are not what the section says.
    """
    task = open_task(data)
    found = {"source": str(data.source), "task": data.task}
    corpus = getattr(task, "corpus", None)
    if corpus is not None:
        if corpus.documents is not None:
            found["documents"] = f"{corpus.documents:,}"
        found["vocabulary"] = f"{corpus.vocab_size:,}"
        if corpus.bytes is not None:
            found["bytes of text"] = f"{corpus.bytes:,}"
            found["bytes per token"] = f"{corpus.bytes / max(1, corpus.tokens):.3f}"
        for split in ("train", "tune", "eval"):
            tokens = len(getattr(corpus, split))
            found[f"{split}, tokens"] = f"{tokens:,} ({tokens // task.tokens_per_example:,} sequences)"
    else:
        parts = getattr(task, "images", None) or getattr(task, "pairs", None)
        for split in ("train", "tune", "eval"):
            found[f"{split}, examples"] = f"{len(getattr(parts, split)):,}"
    return {**found, "fingerprint": task.fingerprint[:16]}
