"""Data that work offline: text, images; and Hugging Face data sets."""

from meristem.data.corpus import Corpus, first_tokens, open_corpus
from meristem.data.corruption import CorruptedSpans, MaskedSequences
from meristem.data.denoisers import Denoisers, PrefixDenoisers
from meristem.data.images import Images, LabelledImages, open_images
from meristem.data.order import Ordered
from meristem.data.pairs import PaddedPairs, Pairs, open_pairs
from meristem.data.sequences import Sequences

__all__ = [
    "Corpus",
    "CorruptedSpans",
    "Denoisers",
    "Images",
    "LabelledImages",
    "MaskedSequences",
    "Ordered",
    "PaddedPairs",
    "Pairs",
    "PrefixDenoisers",
    "Sequences",
    "first_tokens",
    "open_corpus",
    "open_images",
    "open_pairs",
]
