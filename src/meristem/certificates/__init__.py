"""Certificates: the measured proof that two networks compute the same function.

What is measured. Both networks run on the same inputs, and every output tensor (`anatomy.inputs.outputs_of`)
is compared. The weights are those that are stored. The networks compute in float64 if the architecture can,
and in float32 otherwise. Networks above `FLOAT64_LIMIT` parameters also compute in float32, because a float64
copy might not fit in memory. Both networks run in their own dtype too, where a result that is not finite is a
failure.

How the tolerance is chosen. A correct growth differs from its source by rounding only. A wrong one (a
misplaced head, a forgotten factor) differs by a good part of the spread of the logits, 1e-2 and more. Many
networks compute norms and rotary tables in float32 whatever their dtype, which leaves about 1e-7. A tolerance
of 1e-5 of the largest logit is two orders of magnitude from either. In pure float32, rounding accumulates
with depth, and the tolerance is 1e-4.

Weights in half precision are rounded when they are stored. A growth whose factors are not powers of two
rounds them once more. The effect of one such rounding is measured on the small network itself: each of its
weights moves at random by at most half a digit of the stored dtype. `ROUNDINGS` times the resulting change of
the logits is allowed on top (`rounding_allowance`). A growth is then also proved without any rounding, from
the same weights in float32 (`unrounded_relative_error`).
"""

from meristem.certificates.certificate import Certificate
from meristem.certificates.distance import relative_error
from meristem.certificates.measure import error_in_high_precision, stored_dtype, verify
from meristem.certificates.passes import outputs_in

__all__ = ["Certificate", "error_in_high_precision", "outputs_in", "relative_error", "stored_dtype", "verify"]
