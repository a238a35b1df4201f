"""What simgrad's operations are without it: the same results in PyTorch, written as its users write them.

Functions take tensors and return tensors, so that `torch.compile` takes them as they are. Rows are unit rows unless a name says otherwise.
"""

import torch
import torch.nn.functional as F


def unit(v):
    return F.normalize(v, dim=-1)


def product_f32(a, b):
    """a @ b of 16-bit matrices, stored in f32 where this PyTorch can do that in one go."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda":
        try:
            return torch.mm(a, b, out_dtype=torch.float32)
        except (TypeError, RuntimeError):
            pass
    return (a @ b).float()


def cosine(x, y):
    """Normalises, then one product; f32 out."""
    return product_f32(unit(x), unit(y).T)


def cosine_batched(x, y):
    return torch.bmm(unit(x), unit(y).transpose(1, 2)).float()


def hide_pairs(s, first=0):
    """Own pairs out of rows first.. of S."""
    pairs = min(s.shape[0], s.shape[1] - first)
    if pairs > 0:
        s[:pairs, first : first + pairs].fill_diagonal_(float("-inf"))
    return s


def mine(x, y):
    s = hide_pairs(x @ y.T)
    (row, i), (col, j) = s.max(1), s.max(0)
    return row, i, col, j


def mine_chunked(x, y, chunk=4096):
    """S in slices of rows, the columns' maxima carried along; the lower row stays on ties."""
    rows, indices, col, j = [], [], None, None
    for first in range(0, x.shape[0], chunk):
        s = hide_pairs(x[first : first + chunk] @ y.T, first)
        value, index = s.max(1)
        rows.append(value)
        indices.append(index)
        value, index = s.max(0)
        if col is None:
            col, j = value, index
        else:
            better = value > col
            col, j = torch.where(better, value, col), torch.where(better, index + first, j)
    return torch.cat(rows), torch.cat(indices), col, j


def top_k(x, y, k):
    s = hide_pairs(x @ y.T)
    (row, i), (col, j) = s.topk(k, 1), s.topk(k, 0)
    return row, i, col.T, j.T


def semi_hard(x, y):
    """The hardest of the negatives below the positive, both ways."""
    s = x @ y.T
    p = s.diagonal()
    (row, i), (col, j) = (s.masked_fill(s >= p.unsqueeze(at), float("-inf")).max(at) for at in (1, 0))
    return row, i, col, j


def lse_chunked(x, y, scale, chunk=8192):
    rows, col = [], None
    for first in range(0, x.shape[0], chunk):
        z = product_f32(x[first : first + chunk], y.T) * scale
        rows.append(z.logsumexp(1))
        part = z.logsumexp(0)
        col = part if col is None else torch.logaddexp(col, part)
    return torch.cat(rows), col


def clip_loss(x, y, scale):
    """The symmetric cross-entropy as open_clip computes it on one device: both matrices of logits, each from a product of its own."""
    labels = torch.arange(x.shape[0], device=x.device)
    image, text = scale * (x @ y.T), scale * (y @ x.T)
    return (F.cross_entropy(image.float(), labels) + F.cross_entropy(text.float(), labels)) / 2


def siglip_loss(x, y, scale, bias, first=0):
    """The rows' part of the pairwise sigmoid loss, own pairs from row `first` on."""
    z = (scale * (x @ y.T) + bias).float()
    labels = -torch.ones_like(z)
    labels[:, first : first + x.shape[0]].fill_diagonal_(1.0)
    return -F.logsigmoid(labels * z).sum()


def gradients(loss, x, y, *rest):
    """Of `loss(x, y, *rest)` with respect to x and y, by autograd."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return torch.autograd.grad(loss(x, y, *rest), (x, y))


def siglip_gradients(x, y, scale, bias, chunk=0, loss=siglip_loss):
    """By autograd, in slices of rows if `chunk` is not 0, so that no graph holds all of S."""
    n = x.shape[0]
    dx, dy = [], None
    for first in range(0, n, chunk or n):
        gx, gy = gradients(lambda a, b: loss(a, b, scale, bias, first) / n, x[first : first + (chunk or n)], y)
        dx.append(gx)
        dy = gy.float() if dy is None else dy + gy
    return torch.cat(dx), dy


def clip_weights(z, row_lse, col_lse, factor):
    """dL/dS of a slice of logits, own pairs apart."""
    return ((torch.exp(z - row_lse[:, None]) + torch.exp(z - col_lse[None, :])) * factor).to(torch.bfloat16)


def clip_fused(x, y, scale, lse, weights=clip_weights, chunk=4096):
    """With the statistics from `lse(x, y)`, then slices of W and two products each: no more memory than a slice."""
    n = x.shape[0]
    row, col = lse(x, y)
    dx, dy = torch.empty(x.shape, dtype=torch.float32, device=x.device), torch.zeros(y.shape, dtype=torch.float32, device=x.device)
    for first in range(0, n, chunk):
        part = slice(first, min(first + chunk, n))
        w = weights(product_f32(x[part], y.T) * scale, row[part], col, scale / (2 * n)).to(x.dtype)
        dx[part] = product_f32(w, y)
        dy += product_f32(w.T, x[part])
    # The own pairs' -2 in f32: beside it the rest of W is small, and bf16 would round it away.
    return dx.sub_(y.float(), alpha=scale / n), dy.sub_(x.float(), alpha=scale / n)


def sparse_gradient(x, y, rows, cols, values):
    dx, dy = (torch.zeros(v.shape, dtype=torch.float32, device=v.device) for v in (x, y))
    dx.index_add_(0, rows, values[:, None] * y[cols].float())
    dy.index_add_(0, cols, values[:, None] * x[rows].float())
    return dx, dy


def goal_loop(x, y, margin=0.2):
    """A GOAL step, hinge times constant, as a loop over anchors with an addition to a row each: how such objectives are first written."""
    ux, uy = unit(x.float()), unit(y.float())
    s = ux @ uy.T
    gx, gy = torch.zeros_like(ux), torch.zeros_like(uy)
    hard = s.clone().fill_diagonal_(float("-inf"))
    for i in range(s.shape[0]):
        for line, own, other, g_own, g_other in ((hard[i], ux, uy, gx, gy), (hard[:, i], uy, ux, gy, gx)):
            j = int(line.argmax())
            if margin + line[j] - s[i, i] > 0:
                g_own[i] += other[j] - other[i]
                g_other[j] += own[i]
                g_other[i] -= own[i]
    project = lambda g, u, v: (g - u * (u * g).sum(1, keepdim=True)) / v.float().norm(dim=1, keepdim=True)
    return project(gx, ux, x), project(gy, uy, y)


def top_matches(x, y, row_ids, col_ids, k=10, chunk=1024):
    """Whether the k nearest are of the query's group, in order, for the rows against the columns and the other way round."""
    found = []
    for a, b, ids, others in ((x, y, row_ids, col_ids), (y, x, col_ids, row_ids)):
        near = torch.cat([(a[first : first + chunk] @ b.T).topk(min(k, b.shape[0]), 1).indices for first in range(0, a.shape[0], chunk)])
        found.append(others[near] == ids[:, None])
    return found
