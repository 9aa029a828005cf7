"""Data that work offline (text, images), and Hugging Face data sets."""

from typing import TYPE_CHECKING

from meristem.lazily import load_when_used

if TYPE_CHECKING:
    from meristem.data.corpus import Corpus, first_tokens, open_corpus
    from meristem.data.corruption import CorruptedSpans, MaskedSequences
    from meristem.data.denoisers import Denoisers, PrefixDenoisers
    from meristem.data.images import Images, LabelledImages, open_images
    from meristem.data.order import Ordered
    from meristem.data.pairs import PaddedPairs, Pairs, open_pairs
    from meristem.data.sequences import Sequences

load_when_used(
    __name__,
    {
        "Corpus": "meristem.data.corpus",
        "first_tokens": "meristem.data.corpus",
        "open_corpus": "meristem.data.corpus",
        "CorruptedSpans": "meristem.data.corruption",
        "MaskedSequences": "meristem.data.corruption",
        "Denoisers": "meristem.data.denoisers",
        "PrefixDenoisers": "meristem.data.denoisers",
        "Images": "meristem.data.images",
        "LabelledImages": "meristem.data.images",
        "open_images": "meristem.data.images",
        "Ordered": "meristem.data.order",
        "PaddedPairs": "meristem.data.pairs",
        "Pairs": "meristem.data.pairs",
        "open_pairs": "meristem.data.pairs",
        "Sequences": "meristem.data.sequences",
    },
)

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
