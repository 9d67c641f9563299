"""The kernels behind `fused`: votes are cast, coupled and summed in registers, and never written.

Letters as in `reference`, and S for the samples that a program takes at a time. A tile of votes is `[S, J, D]`, J and D padded to
powers of two; the padding is 0 and gets no coupling. There are two layouts:

    over samples   a program takes S samples and walks along a chunk of the input capsules: for sums over I. Each chunk
                   writes its own part.
    over capsules  a program takes one input capsule, keeps its weights in registers and walks along a chunk of the batch:
                   for the gradients of inputs (each written once) and weights (again a part per chunk).

`finish` adds the parts of a sum and squashes the result. For a small layer `rounds_at_once` does all of RBA's rounds instead.
So nothing is added by atomics, and the same call gives the same bits. Sums have the type of the parts: float32,
or float64 if that was given. Products are plain multiplications, which no setting turns into TF32.
"""
# Parameters are Triton's pointers and scalars, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="arg-type"

import triton
import triton.language as tl

from capsbench.routing.triton.votes import (
    as_float64,
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
    softmax,
    squashed,
    squashed_vjp,
    tile_votes,
    unit_votes,
    vote_lengths,
)

# One kernel for all sizes of B and I: only the sizes of contiguous dimensions need to be known ahead.
_kernel = triton.jit(do_not_specialize=["batch", "count", "span"])


@_kernel
def coupled_sum(
    inputs, weight, anchor, temperature, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, LIMITED: tl.constexpr,
    S: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sum Σ_i c_i û_i; limited votes are coupled by distance (SDA). Without `anchor` the plain sum Σ_i û_i. Over samples.

    `[., B, J, D]`.
    """
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    b = samples(S)
    live = b < batch
    if anchor is not None:
        centre = tl.load(anchor + b * (J * D) + cell, mask=live & real, other=0)
    total = tl.zeros((S, J_PAD, D_PAD), parts.dtype.element_ty)
    first = tl.program_id(1).to(tl.int64) * span
    for i in range(first, tl.minimum(first + span, count)):
        # The votes of more samples leave registers for fewer loads at once.
        votes, square = cast(inputs, weight, b, i, count, cell, live, real, total, K, J * D, 16 // S)
        if LIMITED:
            votes = limited(votes, tl.sqrt(square))
        if anchor is None:
            total += votes
        else:
            total += coupling(votes, centre, temperature, outputs) * votes
    tl.store(part(parts, batch, J * D) + b * (J * D) + cell, total, mask=live & real)


@triton.jit(do_not_specialize=["rows", "chunks", "of_sample", "share_of", "known", "wanted"])
def finish(
    parts, bias, agreed, outputs, sums, total, rows, chunks, of_sample, share_of, known, wanted,
    D: tl.constexpr, ROWS: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The sum s of all parts over `share_of`, with the bias, and squash(s); for RBA also the new Σv, `total`, if it is `wanted`.

    Numbers rather than missing tensors say what a round has (`agreed` is 0 unless it is `known`), so that all rounds run the
    same program, and equal parts give equal bits. A row is one output capsule; a sample has `of_sample` of them.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, D_PAD)[None, :]
    here, real = row * D + d, (row < rows) & (d < D)
    s = tl.load(parts + here, mask=real, other=0)
    # Enough loads at once to hide their latency.
    for chunk in tl.range(1, chunks, loop_unroll_factor=8):
        s += tl.load(parts + chunk * rows.to(tl.int64) * D + here, mask=real, other=0)
    s = s / share_of.to(s.dtype)
    if bias is not None:
        s += tl.load(bias + (row % of_sample) * D + d, mask=real, other=0)
    value = squashed(s, 1)
    tl.store(sums + here, s, mask=real)
    tl.store(outputs + here, value, mask=real)
    if agreed is not None:
        before = tl.load(agreed + here, mask=real & (known > 0), other=0)
        tl.store(total + here, before + value, mask=real & (wanted > 0))


@triton.jit(do_not_specialize=["rows"])
def squash_vjp(sums, grad, grad_sums, rows, D: tl.constexpr, ROWS: tl.constexpr, D_PAD: tl.constexpr):
    """The gradient of squash(s), row by row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, D_PAD)[None, :]
    here, real = row * D + d, (row < rows) & (d < D)
    s = tl.load(sums + here, mask=real, other=0)
    tl.store(grad_sums + here, squashed_vjp(s, tl.load(grad + here, mask=real, other=0).to(s.dtype), 1), mask=real)


@triton.jit(do_not_specialize=["rounds", "known"])
def rounds_at_once(
    inputs, weight, agreed, outputs, sums, before, rounds, known,
    COUNT: tl.constexpr, K: tl.constexpr, J: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """All rounds of RBA for one sample: outputs, the last sum s, and the Σv that the last round started from.

    `agreed` is the Σv to start from if it is `known`, and 0 otherwise. Every round is the same program, so that one round from a
    known Σv has the bits of the last of several. Votes `[TILE, J, D]` are computed once if a tile holds all input capsules.
    """
    precise = sums.dtype.element_ty
    b = tl.program_id(0).to(tl.int64)
    cell, real, of_j = cells(J, D, J_PAD, D_PAD)
    here = b * (J * D) + cell
    i = tl.arange(0, TILE)[:, None, None]
    start = tl.load(agreed + here, mask=real & (known > 0), other=0)
    total, s = start, tl.zeros_like(start)
    value = tl.zeros_like(start)
    if TILE >= COUNT:
        votes = tile_votes(inputs, weight, b, i, cell, real, precise, COUNT, K, J * D, TILE, J_PAD, D_PAD)
    for _ in range(rounds):
        start = total
        s = tl.zeros_like(start)
        for first in range(0, COUNT, TILE):
            if TILE < COUNT:
                votes = tile_votes(inputs, weight, b, first + i, cell, real, precise, COUNT, K, J * D, TILE, J_PAD, D_PAD)
            c = softmax(tl.sum(votes * start, 2, keep_dims=True), of_j)
            s += tl.sum(c * votes, 0, keep_dims=True)
        value = squashed(s, 2)
        total = start + value
    tl.store(outputs + here, value, mask=real)
    tl.store(sums + here, s, mask=real)
    tl.store(before + here, start, mask=real)


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
    tl.store(part(parts, batch, 1) + b, tl.sum(total, 1, keep_dims=True), mask=live)


@triton.jit(do_not_specialize=["number", "votes", "addend_bits", "factor_bits", "epsilon_bits"])
def temperature_of(parts, temperature, number, votes, addend_bits, factor_bits, epsilon_bits, SIZE: tl.constexpr):
    """The temperature of SDA, from a number of parts of the summed distance of all votes; all in float64. One program.

    `…_bits` have the bits of float64 numbers.
    """
    place = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float64)
    for first in range(0, number, SIZE):
        total += tl.load(parts + first + place, mask=first + place < number, other=0).to(tl.float64)
    mean = tl.sum(total, 0) / votes.to(tl.float64)
    addend, factor = as_float64(addend_bits), as_float64(factor_bits)
    found = addend + factor / (mean / 2 - mean + as_float64(epsilon_bits))
    tl.store(temperature, found.to(temperature.dtype.element_ty))


@_kernel
def coupled_sum_vjp(
    inputs, weight, anchor, temperature, sums, grad, grad_sums, grad_inputs, parts, batch, count, span,
    K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, LIMITED: tl.constexpr,
    SLICE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """The gradients of the sum s of a round, whose coupling is a constant. Over capsules. Parts `[., I, K, J, D]`.

    Given `sums`, which is s, `grad` is the gradient of squash(s), and that of s is computed here and written once to `grad_sums`.
    Without `anchor` the coupling is uniform.
    """
    precise = parts.dtype.element_ty
    cell, real, outputs = cells(J, D, J_PAD, D_PAD)
    i = tl.program_id(0).to(tl.int64)
    k, real_k = own_k(K, SLICE)
    own, mask = own_weights(K, J, D, SLICE, J_PAD, D_PAD)
    rows = tl.reshape(tl.load(weight + i * (K * J * D) + own, mask=mask, other=0).to(precise), (SLICE, J_PAD, D_PAD))
    grad_rows = tl.zeros((SLICE, J_PAD, D_PAD), precise)
    writes = (tl.program_id(0) == 0) & (tl.program_id(2) == 0)
    first = tl.program_id(1).to(tl.int64) * span
    for b in range(first, tl.minimum(first + span, batch)):
        here = b * (J * D) + cell
        row = (b * count + i) * K + k
        u = tl.load(inputs + row, mask=real_k, other=0).to(precise)
        grad_sum = tl.load(grad + here, mask=real, other=0).to(precise)
        if sums is not None:
            grad_sum = squashed_vjp(tl.load(sums + here, mask=real, other=0), grad_sum, 2)
            tl.store(grad_sums + here, grad_sum, mask=real & writes)
        c: tl.constexpr = 1 / J
        if anchor is not None or LIMITED:
            votes, square = cast_held(u, rows, inputs, weight, b, i, count, cell, real, grad_sum, K, SLICE, J * D)
        if anchor is not None:
            centre = tl.load(anchor + here, mask=real, other=0)
        if not LIMITED:
            if anchor is None:
                grad_votes = grad_sum * c
            else:
                grad_votes = coupling(votes, centre, temperature, outputs) * grad_sum
            grad_u = over_outputs(rows * grad_votes)
        else:
            most = tl.sqrt(square)
            if anchor is None:
                grad_votes, grad_most = limited_vjp(votes, most, c * grad_sum)
            else:
                grad_last = coupling(limited(votes, most), centre, temperature, outputs) * grad_sum
                grad_votes, grad_most = limited_vjp(votes, most, grad_last)
            grad_u = over_outputs(rows * grad_votes) + grad_most * unit_votes(u, most)
        grad_rows += u * grad_votes
        tl.store(grad_inputs + row, grad_u, mask=real_k)
    own_part = part(parts, count, K * J * D) + i * (K * J * D)
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
    tl.store(part(parts, batch, J * D) + here, moment, mask=live & real)
    if about is None:
        tl.store(part(total_parts, batch, J) + of_output, total, mask=live & outputs)


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
    tl.store(part(zeroth_parts, batch, J) + of_output, zeroth, mask=output_mask)
    tl.store(part(first_parts, batch, J * D) + here, moment, mask=here_mask)
    tl.store(part(second_parts, batch, J * D) + here, scatter, mask=here_mask)


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
    own_part = part(parts, count, K * J * D) + i * (K * J * D)
    tl.store(own_part + own, tl.reshape(grad_rows, (SLICE, J_PAD * D_PAD)), mask=mask)
