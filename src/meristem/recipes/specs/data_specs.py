"""The `data` section of a recipe file: the task, and the data."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

TASKS = ("causal-lm", "masked-lm", "span-corruption", "ul2", "text-to-text", "image-classification")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def parse_count(value: Any) -> Any:
    """A number written as 4M, 2.5k or plainly. Other types are returned as they are.

    Raises:
        ValueError: for text that is not a number.
    """
    said = str(value).strip().lower().replace(",", "").replace("_", "")
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmbg]?)", said)
    if match:
        return int(float(match.group(1)) * _UNITS[match.group(2)])
    if isinstance(value, str):
        raise ValueError(f"{value!r} is no number of tokens or examples; write 300000, 300k, 2.5M or 1B")
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


class Strict(BaseModel):
    """A section of the recipe."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True, allow_inf_nan=False)


class SourceSpec(Strict):
    """One of several texts (see `data.open_corpus`). Its share of the text is proportional to its
    `weight`.
    """

    source: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    text_column: str = "text"
    stream: bool = False


class TextSpec(Strict):
    """Where the text comes from (see `data.open_corpus`), how it is cut into sequences, and what the network
    predicts: the next token, masked tokens, or spans that were removed. `sources` names several texts, each
    with a weight. `sequence_length` is in tokens, and `eval_sequences` is the number of held-out sequences.
    `corrupted` is the share of tokens that are masked or removed.

    `documents` is `across`, `within` or `whole`. `across` cuts sequences without regard to documents, and
    each sequence is read as one text. `within` cuts the same way, but attention and positions stay within
    each document. `whole` packs documents so that none is cut if it fits into a sequence, and each is read
    separately. `prefix_lm` applies to ul2. It is for decoders, which then read the input in both directions.
    By default it follows the networks of the recipe.
    """

    task: Literal["causal-lm", "masked-lm", "span-corruption", "ul2"] = "causal-lm"
    source: str = "python-stdlib"
    tokenizer: str = "bytes"
    text_column: str = "text"
    stream: bool = False
    sources: Annotated[list[SourceSpec], Field(min_length=2, max_length=100)] | None = None
    documents: Literal["across", "within", "whole"] = "across"
    sequence_length: Annotated[int, Field(gt=1)] = 256
    eval_sequences: Annotated[int, Field(gt=0)] = 64
    corrupted: Annotated[float, Field(gt=0, lt=1)] = 0.15
    prefix_lm: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, value: Any) -> Any:
        """Name several sources together, for messages.

        Raises:
            ValueError: if both one source and `sources` are given.
        """
        several = isinstance(value, dict) and value.get("sources")
        if not isinstance(several, list) or not all(isinstance(one, dict) and "source" in one for one in several):
            return value
        name = " + ".join(str(one["source"]) for one in several)
        for key in ("source", "text_column", "stream"):
            if value.get(key) not in (None, name, "text", False):
                raise ValueError(f"give either `{key}` or `sources`, each with its own `{key}`")
        return {**value, "source": name}

    @model_validator(mode="after")
    def _is_prefix_lm(self) -> TextSpec:
        if self.prefix_lm is not None and self.task != "ul2":
            raise ValueError(f"prefix_lm needs task ul2; this is {self.task}")
        return self

    @model_validator(mode="after")
    def _documents_fit(self) -> TextSpec:
        if self.documents != "across" and self.task != "causal-lm":
            raise ValueError(f"documents: {self.documents} needs task causal-lm; {self.task} reads across documents")
        return self

    @property
    def parts(self) -> list[SourceSpec]:
        """The list of sources, also if there is only one."""
        return self.sources or [SourceSpec(source=self.source, text_column=self.text_column, stream=self.stream)]


class PairSpec(Strict):
    """Where pairs of texts come from (see `data.open_pairs`). `sequence_length` and `target_length` are the
    largest numbers of tokens of the input and of the target. `fraction` is the share of the training pairs
    that is used. `eval_examples` is the number of held-out pairs, all of them by default.
    """

    task: Literal["text-to-text"]
    source: str
    tokenizer: str = "bytes"
    input_column: str = "text"
    target_column: str = "label"
    sequence_length: Annotated[int, Field(gt=1)] = 128
    target_length: Annotated[int, Field(gt=1)] = 32
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    eval_examples: Annotated[int, Field(gt=0)] | None = None


class ImageSpec(Strict):
    """Where the images come from (see `data.open_images`). `fraction` is the share of the training images
    that is used, and `augment` how they are varied. `eval_examples` is the number of held-out images, all of
    them by default.
    """

    task: Literal["image-classification"]
    source: str = "digits"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    augment: tuple[Literal["crop", "flip"], ...] = ()
    eval_examples: Annotated[int, Field(gt=0)] | None = None


def _kind(value: Any) -> str:
    task = value.get("task") if isinstance(value, dict) else getattr(value, "task", None)
    return {"image-classification": "images", "text-to-text": "pairs"}.get(str(task), "text")


DataSpec = Annotated[
    Annotated[TextSpec, Tag("text")] | Annotated[PairSpec, Tag("pairs")] | Annotated[ImageSpec, Tag("images")],
    Discriminator(_kind),
]
