"""Whole documents packed into sequences. A document that fits into a sequence is not cut, and few places stay
empty.

Best-fit decreasing (Ding et al. 2024, arXiv:2404.10830, section 3): a document longer than a sequence is cut
into sequences and a rest. Then each piece, the longest first, goes into the sequence in which it leaves the
fewest places empty. The plan is kept in the cache, memory-mapped, with a name from the corpus.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from filelock import FileLock

from meristem.data.token_cache import cache_folder
from meristem.data.windows import WholeDocuments

FORMAT = 1
CHUNK = 1 << 24  # tokens that are looked through at a time
FILES = ("starts", "ends", "firsts")


def packed_documents(array: np.ndarray, sequence_length: int, separator: int, name: str) -> WholeDocuments:
    """The pieces of `array` in sequences of at most `sequence_length` tokens.

    Args:
        array: 1-D tokens, in which each document is followed by `separator`.
        sequence_length: the largest number of tokens of a sequence.
        separator: the token after each document.
        name: a name for exactly this array, for the cache.
    """
    folder = cache_folder().with_name("packing")
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((FORMAT, name, len(array), sequence_length, separator)).encode()).hexdigest()
    place = folder / key
    with FileLock(folder / f"{key}.lock"):
        if not place.exists():
            partial = Path(tempfile.mkdtemp(dir=folder, prefix="."))
            try:
                found = best_fit(*pieces(array, sequence_length, separator), sequence_length)
                for file, content in zip(FILES, found, strict=True):
                    np.save(partial / f"{file}.npy", content)
                partial.rename(place)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return WholeDocuments(array, *(np.load(place / f"{file}.npy", mmap_mode="r") for file in FILES))


def pieces(array: np.ndarray, sequence_length: int, separator: int) -> tuple[np.ndarray, np.ndarray]:
    """The start and the end of each piece. Documents that are too long become several pieces."""
    found = [
        np.flatnonzero(array[start : start + CHUNK] == separator) + start + 1 for start in range(0, len(array), CHUNK)
    ]
    ends = np.concatenate([*found, [len(array)]]) if array[-1] != separator else np.concatenate(found)
    starts = np.concatenate([[0], ends[:-1]])
    counts = -(-(ends - starts) // sequence_length)  # pieces of each document
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(starts, counts) + within * sequence_length
    return first, np.minimum(first + sequence_length, np.repeat(ends, counts))


def best_fit(starts: np.ndarray, ends: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The starts and ends of the pieces, one sequence after another, and the number of the first piece of
    each sequence (and the number of all pieces).
    """
    lengths = ends - starts
    order = np.argsort(-lengths, kind="stable")
    rooms: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # sequences by the room that is left
    open_rooms, count = 0, 0  # a bit for each room that some sequence has
    sequence_of = np.empty(len(order), dtype=np.int64)
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = rooms[room].pop()
            if not rooms[room]:
                open_rooms ^= 1 << room
        else:
            room, sequence, count = sequence_length, count, count + 1
        left = room - length
        if left:
            rooms[left].append(sequence)
            open_rooms |= 1 << left
        sequence_of[piece] = sequence
    sorted_pieces = np.lexsort((starts, sequence_of))
    firsts = np.searchsorted(sequence_of[sorted_pieces], np.arange(count + 1))
    return starts[sorted_pieces], ends[sorted_pieces], firsts
