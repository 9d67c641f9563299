"""Parts of the kernels of `kernels`. Letters and layouts as there."""
# Parameters are Triton's pointers and scalars, for which Python has no types; branches decided by compiling are an `if` each.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="assignment,arg-type"

import triton
import triton.language as tl


@triton.jit
def cells(J: tl.constexpr, D: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr):
    """Offsets of the numbers of a `[J, D]`, which of them are real, and which J are; `[1, J, D]` twice, `[1, J, 1]`."""
    j = tl.arange(0, J_PAD)[None, :, None]
    d = tl.arange(0, D_PAD)[None, None, :]
    return j * D + d, (j < J) & (d < D), j < J


@triton.jit
def samples(S: tl.constexpr):
    """The samples of this program, `[S, 1, 1]`; wide, since their products may pass 2³¹."""
    return tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)[:, None, None]


@triton.jit
def own_k(K: tl.constexpr, SLICE: tl.constexpr):
    """The k of this program and which of them are real, `[K, 1, 1]` twice; known when compiled, as far as possible."""
    k = tl.arange(0, SLICE)[:, None, None]
    if SLICE < K:
        k += tl.program_id(2) * SLICE
    return k, (k < K) | (K % SLICE == 0)


@triton.jit
def own_weights(K: tl.constexpr, J: tl.constexpr, D: tl.constexpr, SLICE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr):
    """Offsets of this program's weights among those of an input capsule, and which are real. `[K, J · D]` twice.

    Flat, since Triton spreads loads over threads first along the contiguous dimension and then, of dimensions
    that are equal in this, up to 3.6 along the first. With J and D apart that is K: sums over K cross threads, and registers
    spill.
    """
    k, real_k = own_k(K, SLICE)
    k, real_k = tl.reshape(k, (SLICE, 1)), tl.reshape(real_k, (SLICE, 1))
    flat = tl.arange(0, J_PAD * D_PAD)[None, :]
    j, d = flat // D_PAD, flat % D_PAD
    return k * (J * D) + j * D + d, real_k & (j < J) & (d < D)


@triton.jit
def part(parts, number, SIZE: tl.constexpr):
    """The part of this program's chunk, of `number` times `SIZE` values, whose product may pass 2³¹."""
    return parts + tl.program_id(1).to(tl.int64) * SIZE * number


@triton.jit
def as_float64(bits):
    """The number that has these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def cast(inputs, weight, b, i, count, cell, live, real, like, K: tl.constexpr, PLANE: tl.constexpr, UNROLL: tl.constexpr = 8):
    """Votes û of one input capsule for some samples, `[S, J, D]`, and ‖u‖², `[S, 1, 1]`; in the type of `like`, a `[S, J, D]`."""
    votes = tl.zeros_like(like)
    square = tl.zeros((like.shape[0], 1, 1), like.dtype)
    # Enough loads at once, and no more than registers can hold.
    for k in tl.range(0, K, loop_unroll_factor=UNROLL):
        u = tl.load(inputs + (b * count + i) * K + k, mask=live, other=0).to(like.dtype)
        votes += u * tl.load(weight + (i * K + k) * PLANE + cell, mask=real, other=0).to(like.dtype)
        square += u * u
    return votes, square


@triton.jit
def cast_held(u, rows, inputs, weight, b, i, count, cell, real, like, K: tl.constexpr, SLICE: tl.constexpr, PLANE: tl.constexpr):
    """Votes of one sample, from a capsule u and weights that are held already, if they are all of K."""
    if SLICE < K:
        votes, square = cast(inputs, weight, b, i, count, cell, True, real, like, K, PLANE, 4)
    else:
        votes, square = tl.sum(u * rows, 0, keep_dims=True), tl.sum(u * u, 0, keep_dims=True)
    return votes, square


@triton.jit
def tile_votes(
    inputs, weight, b, i, cell, real, precise: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr, PLANE: tl.constexpr,
    TILE: tl.constexpr, J_PAD: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Votes of some input capsules of one sample, `[TILE, J, D]`; 0 where there is no such capsule."""
    votes = tl.zeros((TILE, J_PAD, D_PAD), precise)
    here = i < COUNT
    for k in tl.range(0, K, loop_unroll_factor=2):
        u = tl.load(inputs + (b * COUNT + i) * K + k, mask=here, other=0).to(precise)
        votes += u * tl.load(weight + (i * K + k) * PLANE + cell, mask=here & real, other=0).to(precise)
    return votes


@triton.jit
def squashed(s, AXIS: tl.constexpr):
    """The squash of s along D, which is this axis, as `squash.squash` computes it."""
    norm = tl.sqrt(tl.sum(s * s, AXIS, keep_dims=True))
    return s * (norm / (1 + norm * norm))


@triton.jit
def squashed_vjp(s, grad, AXIS: tl.constexpr):
    """The gradient of `squashed`, as `squash.squash_and_vjp` has it."""
    square = tl.sum(s * s, AXIS, keep_dims=True)
    norm = tl.sqrt(square)
    above = 1 + square
    along = tl.where(norm > 0, tl.sum(s * grad, AXIS, keep_dims=True) / tl.where(norm > 0, norm, 1), 0)
    return grad * (norm / above) + s * (along * ((1 - square) / (above * above)))


@triton.jit
def coupling(votes, centre, temperature, outputs):
    """Softmax over J of the agreement û·centre or, given a temperature, of temperature · ‖centre − û‖. `[S, J, 1]`."""
    if temperature is None:
        logits = tl.sum(votes * centre, 2, keep_dims=True)
    else:
        logits = tl.load(temperature) * vote_lengths(centre - votes)
    return softmax(logits, outputs)


@triton.jit
def share(off, log_prior, sharpness, outputs):
    """Coupling R of EM, `[S, J, 1]`."""
    return softmax(log_prior - tl.sum(off * off * sharpness, 2, keep_dims=True), outputs)


@triton.jit
def softmax(logits, outputs):
    """Softmax over J, `[S, J, 1]`."""
    logits = tl.where(outputs, logits, -float("inf"))
    powers = tl.exp(logits - tl.max(logits, 1, keep_dims=True))
    return powers / tl.sum(powers, 1, keep_dims=True)


@triton.jit
def vote_lengths(votes):
    """Length over D, `[S, J, 1]`."""
    return tl.sqrt(tl.sum(votes * votes, 2, keep_dims=True))


@triton.jit
def unit_votes(capsules, norm):
    """Unit vectors capsules/norm, and 0 where the norm is 0."""
    return tl.where(norm > 0, capsules / tl.where(norm > 0, norm, 1), 0)


@triton.jit
def limited(votes, most):
    """Votes no longer than `most` `[S, 1, 1]`."""
    norm = vote_lengths(votes)
    longer = norm > most
    return votes * tl.where(longer, most / tl.where(longer, norm, 1), 1)


@triton.jit
def limited_vjp(votes, most, grad):
    """The gradients of `limited` with respect to votes and `most`."""
    norm = vote_lengths(votes)
    longer = norm > most
    direction = unit_votes(votes, norm)
    along = tl.sum(grad * direction, 2, keep_dims=True)
    across = (grad - direction * along) * (most / tl.where(longer, norm, 1))
    return tl.where(longer, across, grad), tl.sum(tl.where(longer, along, 0), 1, keep_dims=True)


@triton.jit
def em_vjp(
    votes, activation, prior, mean, precision, about, grad_total, grad_mean, grad_scatter, here_mask, output_mask, outputs
):  # fmt: skip
    """The gradient of an EM round for logits `[S, J, 1]`; û − μ; its gradients for votes `[S, J, D]` and activation `[S, 1, 1]`.

    `grad_mean` is divided by the total, so that the worth of mass to it is the distance of the vote from `about`, the new mean.
    """
    off, sharpness = votes - tl.load(mean, mask=here_mask, other=0), tl.load(precision, mask=here_mask, other=0)
    given = share(off, tl.load(prior, mask=output_mask, other=0), sharpness, outputs)
    away = votes - tl.load(about, mask=here_mask, other=0)
    to_mean, to_scatter = tl.load(grad_mean, mask=here_mask, other=0), tl.load(grad_scatter, mask=here_mask, other=0)
    grad_mass = tl.load(grad_total, mask=output_mask, other=0) + tl.sum(away * (to_mean + away * to_scatter), 2, keep_dims=True)
    grad_activation = tl.sum(given * grad_mass, 1, keep_dims=True)
    grad_logits = activation * given * (grad_mass - grad_activation)
    grad_votes = activation * given * (to_mean + 2 * away * to_scatter) - 2 * grad_logits * off * sharpness
    return grad_logits, off, grad_votes, grad_activation


@triton.jit
def over_outputs(products):
    """Sums `[K, J, D]` over J and D, `[K, 1, 1]`."""
    return tl.sum(tl.sum(products, 2, keep_dims=True), 1, keep_dims=True)
