"""One forward pass, watched operator by operator: the dimensions of every tensor, and how those of parameters
are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from meristem.anatomy.norms import is_norm, is_plain_norm, plain_shape
from meristem.anatomy.roles import Role
from meristem.anatomy.tracing.rules import Arguments, Dims, indexed, moved, reduced
from meristem.anatomy.tracing.space import Dim, Space

REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "var",
        "var_mean",
        "std",
        "std_mean",
        "linalg_vector_norm",
        "norm",
        "amax",
        "amin",
        "logsumexp",
        "prod",
    ]
)
SOFTMAX = frozenset(["_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax"])
SCALES = frozenset(["mul", "div"])
UNARY = frozenset(["exp", "neg", "sigmoid", "softplus", "tanh", "abs", "sqrt", "rsqrt", "pow", "relu", "log", "silu"])


class Watch(TorchDispatchMode):
    """What one pass has shown.

    Attributes:
        parameters: {name: its dimensions in `space`}.
        votes: {name: for each dimension, the roles that were seen}.
        grouped: (dimension, groups) of those that a norm measures in several groups.
        measured: dimensions that something outside of known norms measures together (a mean, a softmax), with
            its name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.space, self._private = Space(), Space()
        self.parameters: dict[str, Dims] = {}
        self.votes: dict[str, list[set[Role]]] = {}
        self.measured: list[tuple[str, Dims]] = []
        self.grouped: list[tuple[Dim, int]] = []
        self._dims, self._origin = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self._roots: dict[str, Dims] = {}  # dimensions of parameters in a space of their own, where nothing is joined
        self._in_norm = 0
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.parameters[name] = self._dims[tensor] = [self.space.fresh(n) for n in tensor.shape]
            self.votes[name] = [set() for _ in tensor.shape]
            self._roots[name] = [self._private.fresh(n) for n in tensor.shape]
            self._origin[tensor] = (name, self._roots[name], False)  # and whether it is rows of a table

    def hooks(self, model: nn.Module) -> Iterator[Any]:
        """Hooks that tell this watch when a norm runs."""
        for module in model.modules():
            if is_norm(module) or (is_plain_norm(module) and plain_shape(module)):
                yield module.register_forward_pre_hook(self._enter)
                yield module.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._in_norm += 1

    def _leave(self, *_: Any) -> None:
        self._in_norm -= 1

    def of(self, tensor: Tensor) -> Dims:
        dims = self._dims.get(tensor)
        if dims is None or len(dims) != tensor.dim():
            dims = self._dims[tensor] = [self.space.fresh(n) for n in tensor.shape]
        return dims

    def vote(self, tensor: Tensor, place: int, role: Role) -> None:
        """Record that a dimension of a parameter, or of a view of one, was seen in a role."""
        origin = self._origin.get(tensor)
        if origin is None:
            return
        name, private, _ = origin
        self._cast(name, private[place], role)

    def _cast(self, name: str, dim: Sequence[int], role: Role) -> None:
        atoms = self._private.leaves(tuple(dim))
        for place, own in enumerate(self._roots[name]):
            if atoms & self._private.leaves(own):
                self.votes[name][place].add(role)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].removesuffix("_")
        results = [value for value in tree_iter(output) if isinstance(value, Tensor)]
        arguments = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | dict(kwargs or {})
        for argument in func._schema.arguments:
            if argument.name not in arguments and argument.has_default_value():
                arguments[argument.name] = argument.default_value
        operands = [value for value in tree_iter((args, kwargs or {})) if isinstance(value, Tensor)]
        self._carry(name, arguments, operands, results)
        return output

    def _carry(self, name: str, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        if not results or not operands:
            return
        shapes = [list(r.shape) for r in results]
        first = operands[0]
        found = moved(self.space, name, self.of(first), arguments, shapes)
        if found is not None:
            self._give(results, found)
            self._move_origin(name, first, arguments, results, shapes)
            return
        rule = getattr(self, f"_{name.lstrip('_')}", None)
        if rule is not None:
            rule(arguments, operands, results)
        elif name in REDUCTIONS:
            kept, gone = reduced(self.space, self.of(first), arguments, shapes[0])
            self._measure(name, gone)
            self._give(results, [kept] * len(results))
        elif "batch_norm" in name or "group_norm" in name or "layer_norm" in name or "rms_norm" in name:
            self._norm(name, arguments, operands, results)
        elif "scaled_dot_product" in name and len(operands) > 2:
            self._attention(operands, results)
        else:
            self._pointwise(name, arguments, operands, results)

    def _give(self, results: list[Tensor], found: list[Dims]) -> None:
        for tensor, dims in zip(results, found, strict=False):
            if len(dims) == tensor.dim():
                self._dims[tensor] = dims

    def _move_origin(self, name: str, first: Tensor, arguments: Arguments, results: list[Tensor], shapes: Any) -> None:
        origin = self._origin.get(first)
        if origin is None:
            return
        whose, private, rows = origin
        found = moved(self._private, name, private, arguments, shapes) or []
        for tensor, dims in zip(results, found, strict=False):
            self._origin[tensor] = (whose, dims, rows)
        if name in ("select", "unbind"):
            self._cast(whose, private[arguments.get("dim", 0)], "fixed")

    def _measure(self, name: str, dims: Dims) -> None:
        if not self._in_norm:
            self.measured.append((name, [d for d in dims if d]))

    # --- contractions

    def _contract(
        self, a: Tensor, b: Tensor, pairs: Sequence[tuple[int, int]], shared: Sequence[tuple[int, int]]
    ) -> None:
        """Dimensions of two operands that are summed over, and those that both keep."""
        for left, right in (*pairs, *shared):
            self.space.join(self.of(a)[left], self.of(b)[right])
        for tensor, other, side in ((a, b, 0), (b, a, 1)):
            looked_up = (
                other in self._origin and self._origin.get(tensor, ("", [], False))[2]  # pyright: ignore[reportOptionalSubscript]
            )  # what a weight is applied to
            read = set() if looked_up else {pair[side] for pair in pairs}
            for place in range(tensor.dim()):
                self.vote(tensor, place, "read" if place in read else "write")

    def _mm(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        a, b = operands[-2:]
        self._contract(a, b, [(1, 0)], [])
        self._give(results, [[self.of(a)[0], self.of(b)[1]]])
        if len(operands) == 3:
            self._add_to(operands[0], results[0])

    def _addmm(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        self._mm(arguments, operands, results)

    def _bmm(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        a, b = operands[-2:]
        self._contract(a, b, [(2, 1)], [(0, 0)])
        self._give(results, [[self.of(a)[0], self.of(a)[1], self.of(b)[2]]])
        if len(operands) == 3:
            self._add_to(operands[0], results[0])

    def _baddbmm(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        self._bmm(arguments, operands, results)

    def _mv(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        a, b = operands[-2:]
        self._contract(a, b, [(1, 0)], [])
        self._give(results, [[self.of(a)[0]]])

    def _addmv(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        self._mv(arguments, operands, results)
        self._add_to(operands[0], results[0])

    def _dot(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        self._contract(operands[0], operands[1], [(0, 0)], [])

    def _linear(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        x, weight = operands[:2]
        self._contract(x, weight, [(x.dim() - 1, 1)], [])
        self._give(results, [[*self.of(x)[:-1], self.of(weight)[0]]])
        if len(operands) == 3:
            self._add_to(operands[2], results[0])

    def _convolution(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        x, weight = operands[:2]
        groups, transposed = arguments.get("groups", 1), arguments.get("transposed", False)
        read, write = (0, 1) if transposed else (1, 0)
        for place in range(weight.dim()):
            self.vote(weight, place, {read: "read", write: "write"}.get(place, "fixed"))  # pyright: ignore[reportArgumentType]
        channels = self.of(weight)[write] if groups == 1 or not transposed else self.space.fresh(results[0].shape[1])
        if groups == 1:
            self.space.join(self.of(x)[1], self.of(weight)[read])
        elif groups == x.shape[1] == results[0].shape[1] and not transposed:  # depthwise
            self.space.join(self.of(x)[1], channels)
        for place in range(2, weight.dim() if not transposed and x.dim() == weight.dim() else 0):
            if 1 < weight.shape[place] == x.shape[place] and results[0].shape[place] == 1:
                # a kernel as long as what it runs over (all features of a word) sums over it
                self.space.join(self.of(x)[place], self.of(weight)[place])
                self.vote(weight, place, "read")
        spatial = [self.space.fresh(n) for n in results[0].shape[2:]]
        self._give(results, [[self.of(x)[0], channels, *spatial]])
        if len(operands) == 3:
            self.space.join(self.of(operands[2])[0], channels)
            self.vote(operands[2], 0, "write")

    def _trilinear(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        x, weight, y = operands  # as `nn.Bilinear` calls it: (batch, in1), (out, in1, in2), (batch, in2)
        if weight.dim() != 3 or [weight.shape[1], weight.shape[2]] != [x.shape[-1], y.shape[-1]]:
            return self._pointwise("_trilinear", arguments, operands, results)
        self.space.join(self.of(x)[-1], self.of(weight)[1])
        self.space.join(self.of(y)[-1], self.of(weight)[2])
        for place, role in enumerate(("write", "read", "read")):
            self.vote(weight, place, role)  # pyright: ignore[reportArgumentType]
        return self._give(results, [[*self.of(x)[:-1], self.of(weight)[0]]])

    def _attention(self, operands: list[Tensor], results: list[Tensor]) -> None:
        q, k, v = operands[:3]
        queries, keys = self.of(q)[1], self.of(k)[1]
        if self.space.size(queries) > self.space.size(keys):  # grouped: consecutive queries share a key and a value
            size = self.space.size(keys)
            self.space.join(self.space.reshape([queries], [size, self.space.size(queries) // size])[0], keys)
        for place in (0, 1, 3):
            self.space.join(self.of(q)[place], self.of(k)[place])
        for place in (0, 1, 2):
            self.space.join(self.of(k)[place], self.of(v)[place])
        if len(operands) > 3 and operands[3].dim() == 4 and operands[3].shape[1] == q.shape[1]:  # a bias for each head
            self.space.join(self.of(operands[3])[1], self.of(q)[1])
        self._give(results[:1], [[*self.of(q)[:3], self.of(v)[3]]])

    # --- norms, tables, everything else

    def _norm(self, name: str, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        dims = self.of(operands[0])
        over_last = "layer_norm" in name or "rms_norm" in name
        self._give(results[:1], [dims])
        for tensor in operands[1:]:
            if tensor.dim():
                self.space.join(self.of(tensor)[-1], dims[-1] if over_last else dims[1])
        if "group_norm" in name and 1 < arguments.get("group", 1) < self.space.size(dims[1]):
            self.grouped.append((dims[1], arguments["group"]))
        if "batch_norm" not in name:
            last = len(arguments.get("normalized_shape", [1]))
            self._measure(name, dims[-last:] if over_last else dims[1:2])

    def _softmax(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        dims = self.of(operands[0])
        self._measure("softmax", [dims[arguments["dim"]]])
        self._give(results, [dims])

    _log_softmax = _safe_softmax = _softmax

    def _embedding(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        weight, ids = arguments["weight"], arguments["indices"]
        self.vote(weight, 0, "fixed")
        self.vote(weight, 1, "write")
        self._give(results, [[*self.of(ids), self.of(weight)[1]]])

    def _index(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        whole = operands[0]
        found, gone = indexed(self.space, self.of(whole), arguments["indices"], results[0].shape)
        self._give(results, [found])
        origin = self._origin.get(whole)
        if origin is not None:
            private, _ = indexed(self._private, origin[1], arguments["indices"], results[0].shape)
            self._origin[results[0]] = (origin[0], private, True)
            for place in gone:
                self.vote(whole, place, "fixed")

    def _index_add(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        whole, source = operands[0], operands[-1]
        for place in range(whole.dim()):
            if place != arguments["dim"] % whole.dim():
                self.space.join(self.of(whole)[place], self.of(source)[place])
        self._give(results, [self.of(whole)])

    def _cat(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        parts = [o for o in operands if o.dim() == results[0].dim()]
        place = arguments.get("dim", 0) % results[0].dim()
        for other in parts[1:]:
            for i in range(other.dim()):
                if i != place:
                    self.space.join(self.of(parts[0])[i], self.of(other)[i])
        dims = list(self.of(parts[0]))
        dims[place] = self.space.concatenated([self.of(p)[place] for p in parts], [p.shape[place] for p in parts])
        self._give(results, [dims])
        for part in parts:
            self._as_added(part)

    def _stack(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        place = arguments.get("dim", 0) % results[0].dim()
        for other in operands[1:]:
            for a, b in zip(self.of(operands[0]), self.of(other), strict=False):
                self.space.join(a, b)
        dims = list(self.of(operands[0]))
        dims.insert(place, self.space.fresh(len(operands)))
        self._give(results, [dims])

    def _add_to(self, term: Tensor, result: Tensor) -> None:
        self._broadcast([term], result)
        self._as_added(term)

    def _as_added(self, tensor: Tensor) -> None:
        for place in range(tensor.dim()):
            self.vote(tensor, place, "write")

    def _broadcast(self, operands: list[Tensor], result: Tensor) -> None:
        """Aligned dimensions run along the same units."""
        known = self._dims.get(result)
        dims: list[Dim] = list(known) if known is not None and len(known) == result.dim() else [()] * result.dim()
        for operand in operands:
            own = (
                [()] * (result.dim() - operand.dim()) + list(self.of(operand)) if operand.dim() <= result.dim() else []
            )
            for place, dim in enumerate(own):
                if dim and self.space.size(dim) == result.shape[place]:
                    if dims[place]:
                        self.space.join(dims[place], dim)
                    dims[place] = dims[place] or dim
        self._dims[result] = [
            d if d or n == 1 else self.space.fresh(n) for d, n in zip(dims, result.shape, strict=True)
        ]

    def _pointwise(self, name: str, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        """Operators that work entry by entry. For any other operator, dimensions that keep their size count
        as unchanged.
        """
        result = results[0]
        if result in self._dims and result is operands[0]:  # in place
            self._broadcast(operands[1:], result)
        else:
            self._broadcast(operands if name not in ("topk", "sort") else operands[:1], result)
        for other in results[1:]:
            if other.shape == result.shape:
                self._dims[other] = self._dims[result]
        own = [o for o in operands if o in self._origin]
        if len(operands) == 1 and own and name in UNARY and result.shape == own[0].shape:
            self._origin[result] = self._origin[own[0]]  # still that parameter, entry by entry
            return
        scalars = [o for o in operands if not o.dim()]
        if len(own) == 1 and len(own) + len(scalars) == len(operands) and result.shape == own[0].shape:
            self._origin[result] = self._origin[own[0]]
            return
        for operand in own:
            for place in range(operand.dim()):
                self.vote(operand, place, "gain" if name in SCALES else "write")
