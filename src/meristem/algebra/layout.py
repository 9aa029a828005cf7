"""Layouts: how one dimension of a tensor is made of several axes.

A layout is a sum of products of axis names and numbers, with the outermost factor first, similar to einops
patterns:

    "heads head_dim"                         rows of a query projection
    "heads head_dim + 2 kv_heads head_dim"   [Q; K; V] in one matrix (GPT-2, Phi-3)
    "kv_heads (group + 2) head_dim"          per key-value head: queries, key, value (GPT-NeoX, BLOOM, Falcon)
    "2 ffn"                                  [gate; up] in one matrix

`size` evaluates it as a polynomial. `expand` turns one map for each axis into the map of the whole dimension:
products become Kronecker products, and sums become direct sums.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from meristem.algebra.axis_map import AxisMap

_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|\d+|[()+])")


@dataclass(frozen=True)
class Layout:
    """A parsed layout: a sum (outer tuple) of products (inner tuples) of axis names, numbers and nested
    layouts.
    """

    terms: tuple[tuple[str | int | Layout, ...], ...]

    @staticmethod
    def parse(pattern: str | int) -> Layout:
        """Parse a pattern such as `"kv_heads (group + 2) head_dim"`.

        Raises:
            ValueError: if it cannot be parsed. The message quotes the pattern and the part that was not
                expected.
        """
        text = str(pattern)
        tokens, position = [], 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"layout {text!r}: unexpected {text[position:]!r}; use names, numbers, ( ) and +")
            tokens.append(match.group(1))
            position = match.end()
        layout, rest = _parse_sum(tokens, text)
        if rest:
            raise ValueError(f"layout {text!r}: unexpected {' '.join(rest)!r} at the end")
        return layout

    def axes(self) -> frozenset[str]:
        """The names of all axes in the layout."""
        names: set[str] = set()
        for factor in (factor for term in self.terms for factor in term):
            if isinstance(factor, Layout):
                names |= factor.axes()
            elif isinstance(factor, str):
                names.add(factor)
        return frozenset(names)

    def size(self, sizes: Mapping[str, int]) -> int:
        """The number of units, from the size of each axis."""
        total = 0
        for term in self.terms:
            product = 1
            for factor in term:
                if isinstance(factor, Layout):
                    product *= factor.size(sizes)
                else:
                    product *= sizes[factor] if isinstance(factor, str) else factor
            total += product
        return total

    def expand(self, maps: Mapping[str, AxisMap]) -> AxisMap:
        """The map of the whole dimension, from one map for each of its axes."""
        total: AxisMap | None = None
        for term in self.terms:
            first, *others = (_factor_map(factor, maps) for factor in term)
            product = functools.reduce(AxisMap.kron, others, first)
            total = product if total is None else total.direct_sum(product)
        assert total is not None
        return total

    def spread(self) -> Layout:
        """The same units in the same order, without a sum that is followed by a factor: "(a + 2) b" becomes
        "(a b + 2 b)".
        """
        terms = []
        for term in self.terms:
            place = next((i for i, factor in enumerate(term) if isinstance(factor, Layout)), None)
            if place is None:
                terms.append(term)
                continue
            inner = Layout(tuple((*inside, *term[place + 1 :]) for inside in term[place].terms)).spread()  # pyright: ignore[reportAttributeAccessIssue]
            terms += inner.terms if place == 0 else [(*term[:place], inner)]
        return Layout(tuple(terms))

    def simplified(self) -> Layout:
        """The same units in the same order, with numbers multiplied and equal neighbouring terms counted:
        "hidden + 3 hidden" becomes "4 hidden".
        """
        found: list[tuple[int, tuple[str | int | Layout, ...]]] = []
        for term in self.terms:
            factors: list[str | int | Layout] = []
            for factor in (f.simplified() if isinstance(f, Layout) else f for f in term):
                alone = isinstance(factor, Layout) and len(factor.terms) == 1
                for own in factor.terms[0] if alone and isinstance(factor, Layout) else (factor,):
                    if isinstance(own, int) and factors and isinstance(factors[-1], int):
                        factors[-1] *= own
                    elif own != 1:
                        factors.append(own)
            count = factors.pop(0) if factors and isinstance(factors[0], int) else 1
            assert isinstance(count, int)
            rest = tuple(factors)
            if found and found[-1][1] == rest:
                count += found.pop()[0]
            found.append((count, rest))
        return Layout(tuple((n, *rest) if n > 1 or not rest else rest for n, rest in found))

    def __str__(self) -> str:
        return " + ".join(
            " ".join(f"({factor})" if isinstance(factor, Layout) else str(factor) for factor in term)
            for term in self.terms
        )


def _factor_map(factor: str | int | Layout, maps: Mapping[str, AxisMap]) -> AxisMap:
    if isinstance(factor, Layout):
        return factor.expand(maps)
    return maps[factor] if isinstance(factor, str) else AxisMap.identity(factor)


def _parse_sum(tokens: list[str], text: str) -> tuple[Layout, list[str]]:
    terms: list[tuple[str | int | Layout, ...]] = []
    while True:
        term: list[str | int | Layout] = []
        while tokens and tokens[0] not in "+)":
            token, tokens = tokens[0], tokens[1:]
            if token == "(":
                inner, tokens = _parse_sum(tokens, text)
                if not tokens or tokens[0] != ")":
                    raise ValueError(f"layout {text!r}: a '(' is not closed")
                tokens = tokens[1:]
                term.append(inner)
            else:
                term.append(int(token) if token.isdigit() else token)
        if not term:
            raise ValueError(f"layout {text!r}: an empty product")
        terms.append(tuple(term))
        if not tokens or tokens[0] != "+":
            return Layout(tuple(terms)), tokens
        tokens = tokens[1:]
