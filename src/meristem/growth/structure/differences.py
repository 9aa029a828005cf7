"""How two networks of one architecture compute differently, as their configs say. No single config computes
both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meristem.anatomy import Anatomy
from meristem.anatomy.huggingface import HuggingFaceBuilder
from meristem.errors import MeristemError

INERT = re.compile(  # entries that name, describe, initialise or train a network, or steer what generates with it
    r"(.*_)?(name_or_path|transformers_version|architectures|auto_map|dtype|torch_dtype|model_type|label2id|tokenizer_class|"
    r"problem_type|task_specific_params|finetuning_task|use_cache|return_dict|output_attentions|output_hidden_states|"
    r"output_router_logits|is_decoder_only|pretraining_tp|tie_word_embeddings|chunk_size_feed_forward)"
    r"|(bos|eos|sep|cls|decoder_start|forced_bos|forced_eos)_token_id"
    r"|(?!token_dropout).*(dropout|dropout_rate|dropout_prob|_pdrop|layerdrop|drop_path_rate|_drop)|.*initializer.*|.*init_std|.*aux_loss_coef|.*jitter_noise"
    r"|mask_(time|feature)_.*|apply_spec_augment|.*_loss_.*|.*loss_coef(ficient)?|norm_groups|_.*"
)
READ_EOS = re.compile(r".*(clip|bart|t5|blip|bigbird_pegasus|groupvit|mvp).*")  # families whose forward looks for it
UNNAMED = re.compile(r"LABEL_\d+")  # what a label is called by default
Difference = tuple[str, Any, Any]


def differences(first: Anatomy, other: Anatomy) -> list[Difference]:
    """(entry of the config, its value in the first, in the other) for every entry that changes what is
    computed.

    Entries that follow from sizes do not count: the config of the first network is compared at the sizes of
    the other. Tying does not count either, because a fusion of tied with untied networks has both heads.
    Networks without a config have no entries to compare.

    Raises:
        MeristemError: if the architecture of the first network cannot have the sizes of the other.
    """
    if not isinstance(first.builder, HuggingFaceBuilder) or not isinstance(other.builder, HuggingFaceBuilder):
        return []
    alike: Any = first.builder.resized(other.builder.sizes, other.builder.depths, {})
    return differences_of_configs(alike.config, other.builder.config)


def differences_of_configs(first: Any, other: Any) -> list[Difference]:
    """The same for two configs of equal sizes."""
    ours, theirs = (dict(_entries(config.to_dict())) for config in (first, other))
    return [
        (entry, ours.get(entry), theirs.get(entry))
        for entry in sorted(ours.keys() | theirs.keys())
        if not _same(ours.get(entry), theirs.get(entry)) and not _is_inert(entry, ours, theirs)
    ]


def _is_inert(entry: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether an entry changes nothing that is computed, nor what outputs mean."""
    path = entry.split(".")
    if "id2label" in path:  # default names mean nothing
        return any(UNNAMED.fullmatch(str(found.get(entry, "LABEL_0"))) for found in (ours, theirs))
    if path[-1] == "eos_token_id":
        kind = str(ours.get(".".join([*path[:-1], "model_type"])) or ours.get("model_type"))
        return READ_EOS.fullmatch(kind) is None
    return any(INERT.fullmatch(part) for part in path)


def check_alike(first: Anatomy, other: Anatomy, number: int) -> None:
    """Raises MeristemError if network `number` computes differently from the first. The message names the
    entries.
    """
    found = differences(first, other)
    if found:
        raise MeristemError(
            f"networks 1 and {number} compute differently ({shown(found)}); the fused network would run as the first does. Pass "
            "allow_differences=True (--allow-differences) to do that nevertheless: the certificate then shows the gap"
        )


def shown(found: Sequence[Difference]) -> str:
    """The first few, for a sentence."""
    return ", ".join(f"{entry}: {ours!r} and {theirs!r}" for entry, ours, theirs in found[:6])


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, or both NaN."""
    return ours == theirs or repr(ours) == repr(theirs)


def _entries(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every entry that is not itself a dictionary."""
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            yield from _entries(value, name)
        else:
            yield name, list(value) if isinstance(value, tuple) else value
