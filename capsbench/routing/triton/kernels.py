"""The kernels behind `fused`: votes are cast, coupled and summed in registers, and never written.

Letters as in `reference`, and S for the samples that a program takes at a time. A tile of votes is `[S, J, D]`, J and D padded to
powers of two; the padding is 0 and gets no coupling. There are two layouts:

    over samples   a program takes S samples and walks along a chunk of the input capsules: for sums over I. Each chunk
                   writes its own part, and PyTorch adds the parts.
    over capsules  a program takes one input capsule, keeps its weights in registers and walks along a chunk of the batch:
                   for the gradients of inputs (each written once) and weights (again a part per chunk).

So nothing is added by atomics, and the same call gives the same bits. Sums have the type of the parts: float32,
or float64 if that was given. Products are plain multiplications, which no setting turns into TF32.
"""
# Parameters are Triton's pointers and scalars, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from capsbench.routing.triton.votes import (
    cast,
    cast_held,
    cells,
    coupling,
    em_vjp,
    limited,
    limited_vjp,
    over_outputs,
    own_k,
    own_weights,
    part,
    samples,
    share,
    unit_votes,
    vote_lengths,
)

# One kernel for all sizes of B and I: only the sizes of contiguous dimensions need to be known ahead.
_kernel = triton.jit(do_not_specialize=["batch", "count", "span"])


@_kernel
def coupled_sum(
    inputs, weight, anchor, temperature, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, S: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sum Σ_i c_i û_i; with a temperature, votes are limited and coupled by distance (SDA). Over samples. `[., B, J, D]`."""
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    b = samples(S)
    live = b < batch
    centre = tl.load(anchor + b * (J * D) + cell, mask=live & real, other=0)
    total = tl.zeros((S, J_PAD, D_PAD), parts.dtype.element_ty)
    first = tl.program_id(1).to(tl.int64) * span
    for i in range(first, tl.minimum(first + span, count)):
        votes, square = cast(inputs, weight, b, i, count, cell, live, real, total, K, J * D)
        if temperature is not None:
            votes = limited(votes, tl.sqrt(square))
        total += coupling(votes, centre, temperature, outputs) * votes
    tl.store(part(parts, batch * (J * D)) + b * (J * D) + cell, total, mask=live & real)


@_kernel
def summed_distance(
    inputs, weight, anchor, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, S: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sum Σ_ij ‖v_j − û_ij‖, with votes limited. Over samples. Parts `[., B]`."""
    cell, real, _ = cells(J, D, J_PAD, D_PAD)
    b = samples(S)
    live = b < batch
    centre = tl.load(anchor + b * (J * D) + cell, mask=live & real, other=0)
    total = tl.zeros((S, J_PAD, 1), parts.dtype.element_ty)
    first = tl.program_id(1).to(tl.int64) * span
    for i in range(first, tl.minimum(first + span, count)):
        votes, square = cast(inputs, weight, b, i, count, cell, live, real, centre, K, J * D)
        total += vote_lengths(centre - limited(votes, tl.sqrt(square)))
    tl.store(part(parts, batch) + b, tl.sum(total, 1, keep_dims=True), mask=live)


@_kernel
def coupled_sum_vjp(
    inputs, weight, anchor, temperature, grad, grad_inputs, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, SLICE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of `coupled_sum`, whose coupling is a constant. Over capsules. Parts `[., I, K, J, D]`."""
    precise = parts.dtype.element_ty
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    i = tl.program_id(0).to(tl.int64)
    k, real_k = own_k(K, SLICE)
    own, mask = own_weights(K, J, D, SLICE, J_PAD, D_PAD)
    rows = tl.reshape(tl.load(weight + i * (K * J * D) + own, mask=mask, other=0).to(precise), (SLICE, J_PAD, D_PAD))
    grad_rows = tl.zeros((SLICE, J_PAD, D_PAD), precise)
    first = tl.program_id(1).to(tl.int64) * span
    for b in range(first, tl.minimum(first + span, batch)):
        here = b * (J * D) + cell
        row = (b * count + i) * K + k
        u = tl.load(inputs + row, mask=real_k, other=0).to(precise)
        centre = tl.load(anchor + here, mask=real, other=0)
        grad_sum = tl.load(grad + here, mask=real, other=0).to(precise)
        votes, square = cast_held(u, rows, inputs, weight, b, i, count, cell, real, centre, K, SLICE, J * D)
        if temperature is None:
            grad_votes = coupling(votes, centre, temperature, outputs) * grad_sum
            grad_u = over_outputs(rows * grad_votes)
        else:
            most = tl.sqrt(square)
            c = coupling(limited(votes, most), centre, temperature, outputs)
            grad_votes, grad_most = limited_vjp(votes, most, c * grad_sum)
            grad_u = over_outputs(rows * grad_votes) + grad_most * unit_votes(u, most)
        grad_rows += u * grad_votes
        tl.store(grad_inputs + row, grad_u, mask=real_k)
    own_part = part(parts, count * (K * J * D)) + i * (K * J * D)
    tl.store(own_part + own, tl.reshape(grad_rows, (SLICE, J_PAD * D_PAD)), mask=mask)


@_kernel
def em_moment(
    inputs, weight, prior, mean, precision, about, total_parts, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, S: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sums Σ_i R a `[., B, J]` and Σ_i R a û `[., B, J, D]`; given `about`, Σ_i R a (û − about)² alone. Over samples."""
    precise = parts.dtype.element_ty
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    b = samples(S)
    live = b < batch
    here, of_output = b * (J * D) + cell, b * J + tl.arange(0, J_PAD)[None, :, None]
    log_prior = tl.load(prior + of_output, mask=live & outputs, other=0)
    old_mean = tl.load(mean + here, mask=live & real, other=0)
    sharpness = tl.load(precision + here, mask=live & real, other=0)
    if about is not None:
        centre = tl.load(about + here, mask=live & real, other=0)
    total = tl.zeros((S, J_PAD, 1), precise)
    moment = tl.zeros((S, J_PAD, D_PAD), precise)
    first = tl.program_id(1).to(tl.int64) * span
    for i in range(first, tl.minimum(first + span, count)):
        votes, square = cast(inputs, weight, b, i, count, cell, live, real, moment, K, J * D)
        mass = tl.sqrt(square) * share(votes - old_mean, log_prior, sharpness, outputs)
        if about is None:
            total += mass
            moment += mass * votes
        else:
            away = votes - centre
            moment += mass * away * away
    tl.store(part(parts, batch * (J * D)) + here, moment, mask=live & real)
    if about is None:
        tl.store(part(total_parts, batch * J) + of_output, total, mask=live & outputs)


@_kernel
def em_state_vjp(
    inputs, weight, prior, mean, precision, about, grad_total, grad_mean, grad_scatter,
    zeroth_parts, first_parts, second_parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, S: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sums Σ_i g `[., B, J]`, Σ_i g (û − μ), Σ_i g (û − μ)² `[., B, J, D]`, g the gradient of the logits. Over samples."""
    precise = first_parts.dtype.element_ty
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    b = samples(S)
    live = b < batch
    here, of_output = b * (J * D) + cell, b * J + tl.arange(0, J_PAD)[None, :, None]
    here_mask, output_mask = live & real, live & outputs
    zeroth = tl.zeros((S, J_PAD, 1), precise)
    moment = tl.zeros((S, J_PAD, D_PAD), precise)
    scatter = tl.zeros((S, J_PAD, D_PAD), precise)
    first = tl.program_id(1).to(tl.int64) * span
    for i in range(first, tl.minimum(first + span, count)):
        votes, square = cast(inputs, weight, b, i, count, cell, live, real, moment, K, J * D)
        grad_logits, off, _, _ = em_vjp(
            votes, tl.sqrt(square), prior + of_output, mean + here, precision + here, about + here,
            grad_total + of_output, grad_mean + here, grad_scatter + here, here_mask, output_mask, outputs,
        )  # fmt: skip
        zeroth += grad_logits
        moment += grad_logits * off
        scatter += grad_logits * off * off
    tl.store(part(zeroth_parts, batch * J) + of_output, zeroth, mask=output_mask)
    tl.store(part(first_parts, batch * (J * D)) + here, moment, mask=here_mask)
    tl.store(part(second_parts, batch * (J * D)) + here, scatter, mask=here_mask)


@_kernel
def em_votes_vjp(
    inputs, weight, prior, mean, precision, about, grad_total, grad_mean, grad_scatter,
    grad_inputs, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, SLICE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of an EM round with respect to inputs and weight. Over capsules. Parts `[., I, K, J, D]`."""
    precise = parts.dtype.element_ty
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    i = tl.program_id(0).to(tl.int64)
    k, real_k = own_k(K, SLICE)
    own, mask = own_weights(K, J, D, SLICE, J_PAD, D_PAD)
    rows = tl.reshape(tl.load(weight + i * (K * J * D) + own, mask=mask, other=0).to(precise), (SLICE, J_PAD, D_PAD))
    grad_rows = tl.zeros((SLICE, J_PAD, D_PAD), precise)
    first = tl.program_id(1).to(tl.int64) * span
    for b in range(first, tl.minimum(first + span, batch)):
        here = b * (J * D) + cell
        of_output = b * J + tl.arange(0, J_PAD)[None, :, None]
        row = (b * count + i) * K + k
        u = tl.load(inputs + row, mask=real_k, other=0).to(precise)
        old_mean = tl.load(mean + here, mask=real, other=0)
        votes, square = cast_held(u, rows, inputs, weight, b, i, count, cell, real, old_mean, K, SLICE, J * D)
        activation = tl.sqrt(square)
        _, _, grad_votes, grad_activation = em_vjp(
            votes, activation, prior + of_output, mean + here, precision + here, about + here,
            grad_total + of_output, grad_mean + here, grad_scatter + here, real, outputs, outputs,
        )  # fmt: skip
        grad_rows += u * grad_votes
        grad_u = over_outputs(rows * grad_votes) + grad_activation * unit_votes(u, activation)
        tl.store(grad_inputs + row, grad_u, mask=real_k)
    own_part = part(parts, count * (K * J * D)) + i * (K * J * D)
    tl.store(own_part + own, tl.reshape(grad_rows, (SLICE, J_PAD * D_PAD)), mask=mask)
