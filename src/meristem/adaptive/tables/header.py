"""Whether the first row of a table names its columns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-", "#n/a", "<na>",
           "#div/0!", "#ref!", "#value!", "#name?", "#num!", "#null!"}  # fmt: skip
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|[+-]?inf(inity)?$", re.IGNORECASE)
YEARS = range(1800, 2201)
MANY_NAMES = 4  # columns named 0, 1, 2, ... over whole numbers, at least


def is_number(cell: str, decimal: str = ".") -> bool:
    """Whether a cell is a number."""
    return bool(NUMBER.match(cell.strip().replace(decimal, ".")))


def looks_like_header(rows: list[list[str]], decimal: str = ".") -> bool:
    """Whether the first row names the columns: it holds words above numbers, words that do not occur again,
    or numbers that count the columns.
    """
    first, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not body:
        return not any(is_number(cell, decimal) for cell in first)
    votes, words, counted = 0, 0, {}
    for place, name in enumerate(first):
        values = [row[place] for row in body if row[place].lower() not in MISSING]
        if name.isdecimal():
            counted[place] = values
        if name.lower() in MISSING or not values:
            words += not name and values[:2] == ["0", "1"]  # pandas writes the numbers of rows without a name
            continue
        if all(is_number(value, decimal) for value in values):
            if not is_number(name, decimal):
                return True
            votes -= 1
        elif name in values:
            votes -= 1
        elif len(set(values)) <= max(2, len(values) // 2):
            votes += 1
            words += not is_number(name, decimal)
    if counted and len(counted) == sum(is_number(cell, decimal) for cell in first) and first not in body:
        names = [first[place] for place in counted]
        if _are_names(names, list(counted.values()), bool(words), len(first)):
            return True
    return votes > 0 or (votes == 0 and not any(is_number(cell, decimal) for cell in first))


def _are_names(names: Sequence[str], below: Sequence[list[str]], with_words: bool, fields: int) -> bool:
    """Whether whole numbers in the first row are names: years that are not among the values below, or 0, 1,
    2, ... over columns of fractions or next to a word that does not occur again.

    Args:
        names: the whole numbers.
        below: the values below each of them.
        with_words: whether the first row has a word that does not occur again.
        fields: the number of columns.
    """
    numbers = [int(name) for name in names]
    if all(number in YEARS for number in numbers):
        rising = all(one < other for one, other in itertools.pairwise(numbers))
        values = [value for column in below for value in column]
        is_year = any(value.isdecimal() and int(value) in YEARS for value in values)
        return rising and bool(values) and (with_words or (len(numbers) > 1 and not is_year))
    if len(numbers) < 2 or numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        return False
    whole = [[value.lstrip("+-").isdecimal() for value in column] for column in below if column]
    is_even = all(all(column) or not any(column) for column in whole)  # "1" among "0.5" is a value
    fractions = any(not any(column) for column in whole)
    fresh = any(name not in column for name, column in zip(names, below, strict=True))
    return (
        (with_words and fresh) or (fractions and is_even) or (len(numbers) >= MANY_NAMES and fields - len(numbers) <= 1)
    )
