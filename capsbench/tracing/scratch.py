"""Memory that a CPU's libraries take and return in addition to the result, found by trial since nothing documents it."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from capsbench.sizes import GIB
from capsbench.tracing import counting
from capsbench.tracing.operator_calls import Call, Trait, tensors_in, written_in_torch

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int]
"""A tensor's shape, strides and dtype, and the bytes behind it, which may be more."""

_KNOWN: dict[tuple[str, int, bool], int | None] = {}
_RETURNED: dict[tuple[str, bool], list[Layout | None] | None] = {}
_MOST_BYTES = 2 * GIB
"""Largest operator in bytes that is tried: more would take the memory that a trace is there to save."""
_NARROW = {torch.bfloat16, torch.float16}
"""Types whose matrix products a library computes in blocks that it rearranges first, and whose means in a wider type."""
_WITH_BUFFERS = {
    getattr(torch.ops.aten, name)
    for name in (
        "_batch_norm_with_update", "_chunk_cat", "_ctc_loss_backward", "_dirichlet_grad", "_embedding_bag",
        "_embedding_bag_backward", "_embedding_bag_dense_backward", "_embedding_bag_forward_only",
        "_embedding_bag_per_sample_weights_backward", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_fused_rms_norm",
        "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors", "_linalg_det", "_linalg_eigh", "_linalg_slogdet",
        "_linalg_solve_ex", "_linalg_svd", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_safe_softmax",
        "_sample_dirichlet", "_scaled_dot_product_flash_attention_for_cpu", "_trilinear", "_unique", "_unique2",
        "_unsafe_masked_index", "_unsafe_masked_index_put_accumulate", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "all", "allclose", "any",
        "batch_norm_backward", "binary_cross_entropy", "binary_cross_entropy_backward", "binary_cross_entropy_with_logits",
        "bincount", "cholesky_inverse", "cholesky_solve", "col2im", "copysign", "count_nonzero", "deg2rad", "dist", "geqrf",
        "histc", "histogram", "huber_loss", "im2col", "index_reduce", "isin", "isinf", "kthvalue", "ldexp", "linalg_eig",
        "linalg_householder_product", "linalg_inv_ex", "linalg_ldl_factor_ex", "linalg_lstsq", "linalg_lu", "linalg_lu_solve",
        "linalg_matrix_exp", "linalg_matrix_sqrth", "linalg_pinv", "linalg_polar", "linalg_qr", "logsumexp",
        "masked_scatter_backward", "median", "mse_loss", "multilabel_margin_loss_backward",
        "multilabel_margin_loss_forward", "multinomial", "mvlgamma", "nanmedian", "native_batch_norm",
        "native_batch_norm_backward", "native_group_norm_backward", "native_layer_norm_backward", "nonzero_static", "normal",
        "rad2deg", "renorm", "repeat", "repeat_interleave", "roll", "rrelu_with_noise", "scatter_reduce", "segment_reduce",
        "smooth_l1_loss", "soft_margin_loss", "soft_margin_loss_backward", "sort", "std", "std_mean", "unfold_backward",
        "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "upsample_trilinear3d", "var", "var_mean",
    )
    if hasattr(torch.ops.aten, name)  # other releases of torch lack some
}  # fmt: skip
"""Operators that hold more than they return: results by element that they then sum, buffers of threads, copies and tables.

They are those of torch's own tests of operators whose kernels, tried on contiguous tensors, take anything but numbers.
"""
_ENLARGING = {one for one in _WITH_BUFFERS if one.__name__.startswith(("im2col", "repeat", "upsample_", "_upsample_"))}
"""Operators that may return far more than they are given."""
_OF_SHARES = {
    getattr(torch.ops.aten, name)
    for name in (
        "_dirichlet_grad", "_sample_dirichlet", "binary_cross_entropy", "binary_cross_entropy_backward", "multinomial", "normal",
    )
}  # fmt: skip
"""Operators that refuse numbers outside 0 to 1, or negative ones."""
_SUMS = {getattr(torch.ops.aten, name) for name in ("cumprod", "cumsum", "prod", "sum")}
"""Operators that compute in integers of 8 bytes with all narrower ones, and truth values, which they first copy."""
_COPIED_BY_SUMS = {torch.bool, torch.int8, torch.int16, torch.int32, torch.uint8}
_REDUCING = _SUMS | {getattr(torch.ops.aten, name) for name in ("linalg_vector_norm", "mean", "nansum")}
"""Operators that copy what they are given into the type of their result, if that is asked for."""
_BY_INDEX = {getattr(torch.ops.aten, name) for name in ("gather", "scatter", "scatter_", "scatter_add", "scatter_add_")}
"""Operators that copy indices of 4 bytes into ones of 8."""
_REAL = {torch.ops.aten.abs, torch.ops.aten.angle}
"""Operators that compute real numbers of complex ones, as complex ones that they then copy."""
_TO_FRACTIONS = {
    getattr(torch.ops.aten, name)
    for name in (
        "acos", "acosh", "angle", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "deg2rad", "digamma", "div", "erf",
        "erfc", "erfinv", "exp", "exp2", "expm1", "i0", "lgamma", "log", "log10", "log1p", "log2", "logit", "polygamma", "pow",
        "rad2deg", "reciprocal", "rsqrt", "sigmoid", "sin", "sinc", "sinh", "sqrt", "tan", "tanh", "xlogy",
    )
}  # fmt: skip
"""Operators point by point that compute with fractions, into which they copy whole numbers first."""
_CHOOSING = {getattr(torch.ops.aten, name) for name in ("where", "masked_fill", "masked_fill_")}
"""Operators point by point with a tensor of another type that is no operand: it chooses among the others."""
_DIMENSIONS_OF_MATRICES = 2
_POINT_BY_POINT = {torch.Tag.pointwise, torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape}


def may_take(call: Call) -> bool:
    """Return whether a CPU's kernel may take memory: to copy arguments of an unsuitable layout, or to compute in another type."""
    if not call.tensors:
        return False
    widens = Trait.WORKSPACE in call.traits or call.packet in {torch.ops.aten.mean, torch.ops.aten.sum}
    if call.packet in _WITH_BUFFERS or (widens and call.tensors[0].dtype in _NARROW):
        return True
    if _is_of_others(call) or _casts(call) or (Trait.WORKSPACE in call.traits and not all(map(_has_rows, call.tensors))):
        return True
    if all(one.is_contiguous() for one in call.tensors):
        return False
    return not (call.func.is_view or Trait.ANY_LAYOUT in call.traits or _POINT_BY_POINT & set(call.func.tags))


def _has_rows(tensor: Tensor) -> bool:
    """Return whether rows or columns of a matrix lie in memory one number after the other, as a library takes them."""
    if tensor.dim() < _DIMENSIONS_OF_MATRICES or tensor.is_contiguous() or not tensor.numel():
        return True
    (rows, columns), (down, across) = tensor.shape[-2:], tensor.stride()[-2:]
    # Rows that overlap, as those of one that is expanded, are copied first.
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


def _casts(call: Call) -> bool:
    """Return whether a kernel computes in another type than that of a tensor, which it first copies into that type."""
    own, dtypes = call.tensors[0].dtype, {one.dtype for one in call.tensors}
    if call.packet in _BY_INDEX:
        return torch.int32 in dtypes or own in _NARROW
    if call.packet in _REDUCING:
        asked = call.kwargs.get("dtype")
        return asked not in (None, own) or own in (_COPIED_BY_SUMS if call.packet in _SUMS else _NARROW) or own.is_complex
    if torch.Tag.pointwise not in call.func.tags or call.packet in _CHOOSING:
        return False
    if len(dtypes) > 1 or (call.packet in _REAL and own.is_complex):
        return True
    whole = not (own.is_floating_point or own.is_complex)
    if whole and (call.packet in _TO_FRACTIONS or call.packet.__name__.startswith("special_")):
        return True
    return any(torch.result_type(call.tensors[0], one) != own for one in call.args if isinstance(one, int | float | complex))


def _is_of_others(call: Call) -> bool:
    """Return whether an operator is another package's, and in C++, so that all that it does is seen as one call."""
    space = call.func.namespace
    # Those of several processes would wait for the others.
    return space not in ("aten", "prims") and "c10d" not in space and written_in_torch(call.func._schema.name) is None


def scratch_bytes(call: Call) -> int | None:
    """The most memory that a call of an operator holds in addition to inputs and outputs; None where nothing can count it.

    The call is made on new tensors of the same shapes and layouts, once for each.
    """
    if counting.installed() is None:
        return None
    key = call.signature(), torch.get_num_threads(), torch.is_grad_enabled()
    if key not in _KNOWN:
        with unset_fake_temporarily():
            _KNOWN[key] = _tried(call)
    return _KNOWN[key]


def most_bytes(call: Call) -> int:
    """The most memory that a call of an operator on tensors with values holds, what it returns included."""
    if counting.installed() is None:
        return 0
    log = counting.Log()
    out = call.run()
    events = log.close()
    del out
    return int(events[:, 1].cumsum().max(initial=0))


def numbers_bytes(call: Call) -> int:
    """Bytes of the tensors that torch makes of numbers in place of tensors: one of 8 bytes, and one of the type of the others."""
    given = zip(call.func._schema.arguments, call.args, strict=False)
    made_tensors = (
        call.packet in _MAKE_TENSORS
        or call.func is torch.ops.aten.pow.Scalar
        or (call.packet in _OF_SCALARS and call.func._overloadname == "Scalar")
    )
    numbers: list[complex] = [
        one
        for argument, one in given
        if isinstance(one, int | float | complex)
        and argument.name != "alpha"
        and (made_tensors or isinstance(argument.type, torch.TensorType))
    ]
    if call.packet is torch.ops.aten.mean:
        numbers = [call.tensors[0].numel()]  # by which it divides the sum
    elif call.packet in _ONE_BY_ONE:
        numbers = [one for one in tree_leaves(call.args[1]) if isinstance(one, int | float | complex)][:1]
    if not numbers or not call.tensors:
        return 0
    dtypes = [torch.result_type(call.tensors[0], number) for number in numbers]
    held = [_HELD_AS[type(number)] for number in numbers]
    return sum(own.itemsize + (0 if own == dtype else dtype.itemsize) for own, dtype in zip(held, dtypes, strict=True))


_MAKE_TENSORS = {
    getattr(torch.ops.aten, name)
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "remainder", "fmod", "rsub", "bitwise_and", "bitwise_or", "bitwise_xor",
    )
}  # fmt: skip
"""Operators that make a tensor of a number although they are given it as one."""
_OF_SCALARS = {getattr(torch.ops.aten, f"{name}{place}") for name in ("add", "sub", "mul", "div") for place in ("", "_")}
"""Operators that make a tensor of a number if derivatives give them one; Python gives it in place of a tensor."""
_ONE_BY_ONE = {getattr(torch.ops.aten, f"_foreach_{name}{place}") for name in ("add", "sub", "mul", "div") for place in ("", "_")}
"""Operators on lists, which a CPU computes tensor by tensor, with a tensor of the number of each."""

_HELD_AS = {complex: torch.complex128, float: torch.float64, int: torch.int64, bool: torch.bool}
"""Types in which torch holds Python's numbers."""


def _tried(call: Call) -> int | None:
    if _bytes_of(call.args) > _MOST_BYTES or (call.packet in _ENLARGING and _returned_bytes(call) > _MOST_BYTES):
        return None
    real = call.changed(_share if call.packet in _OF_SHARES else real_like)
    real.run()  # a library's lasting buffers are made once, and are no scratch
    log = counting.Log()
    out = real.run()
    events = log.close()
    alive = events[:, 1].cumsum()
    del out
    return max(0, int(alive.max(initial=0) - alive[-1])) if len(alive) else 0


def returned(call: Call) -> list[Layout | None] | None:
    """Layouts of the tensors that an operator on a CPU returns, None for one left out; None if a trial takes too much."""
    # It returns what it keeps for backward where gradients are on, even if no argument needs one.
    key = call.signature(), torch.is_grad_enabled()
    if key not in _RETURNED:
        _RETURNED[key] = None
        if _bytes_of(call.args) <= _MOST_BYTES:
            with unset_fake_temporarily():
                out = call.changed(real_like).run()
            given_back = [out] if isinstance(out, Tensor) else out
            _RETURNED[key] = [layout(one) if isinstance(one, Tensor) else None for one in given_back]
    return _RETURNED[key]


def run_on_host(call: Call) -> tuple[Call, Any] | None:
    """A call with tensors of zeros in the host's memory, and what it returned; None if it would take too much."""
    if _bytes_of(call.args) > _MOST_BYTES:
        return None
    with unset_fake_temporarily(), torch.no_grad():
        given = call.changed(lambda one: torch.device("cpu") if isinstance(one, torch.device) else real_like(one))
        for one in given.tensors:
            one.zero_()
        return given, given.run()


def layout(tensor: Tensor) -> Layout:
    """The memory layout of a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.untyped_storage().nbytes()


def _returned_bytes(call: Call) -> int:
    """Bytes of what an operator returns, without running it."""
    with unset_fake_temporarily():
        return _bytes_of((call.changed(_without_values).run(),))


def _without_values(one: Any) -> Any:
    return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta") if isinstance(one, Tensor) else one


def _bytes_of(args: Any) -> int:
    return sum(one.untyped_storage().nbytes() for one in tensors_in(args))


def _share(one: Any) -> Any:
    """A real tensor of numbers from 0 to 1 for one on shapes."""
    made = real_like(one)
    return made.uniform_() if isinstance(made, Tensor) and made.dtype.is_floating_point else made


def real_like(one: Any) -> Any:
    """A real tensor for one on shapes; anything else is returned as it is."""
    if not isinstance(one, Tensor):
        return one
    size = sum((side - 1) * stride for side, stride in zip(one.shape, one.stride(), strict=True)) + 1 if one.numel() else 0
    made = torch.empty(size, dtype=one.dtype)
    # 0 is valid for every index and every offset.
    return (made.normal_() if one.dtype.is_floating_point else made.zero_()).as_strided(one.shape, one.stride())
