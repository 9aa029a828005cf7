"""Text that works offline, and Hugging Face data sets by name: streams of tokens, split into train and eval."""

from meristem.data.corpus import Corpus, open_corpus
from meristem.data.sequences import Sequences

__all__ = ["Corpus", "Sequences", "open_corpus"]
