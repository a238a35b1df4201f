"""Results against f64, on sampled rows and columns of the first input set. Every function returns errors by name."""

import torch

SAMPLE = 32


def sample(count, device):
    """Indices spread over the whole range, ends included."""
    return torch.linspace(0, count - 1, min(SAMPLE, count), device=device).round().long().unique()


def largest(values):
    return float(values.abs().max()) if values.numel() else 0.0


def relative(found, wanted):
    """The largest error over the largest element; NaN where the result has one."""
    return largest(found.double() - wanted) / max(largest(wanted), 1e-300)


def unit(v, normalize):
    v = v.double()
    return torch.nn.functional.normalize(v, dim=-1) if normalize else v


def cosine(x, y, s, normalize=True):
    """Of sampled rows of a matrix, or of the first and last of a batch."""
    if x.dim() == 3:
        picked = [(unit(x[b], normalize), unit(y[b], normalize), s[b]) for b in (0, x.shape[0] - 1)]
    else:
        at = sample(x.shape[0], x.device)
        picked = [(unit(x[at], normalize), unit(y, normalize), s[at])]
    return {"max_abs": max(largest(part.double() - a @ b.T) for a, b, part in picked)}


def mined(x, y, result, below_positive=False):
    """How far the reported values and the similarities of the reported indices are from the largest ones."""
    row, i, col, j = result
    worst = {"value": 0.0, "regret": 0.0}
    other_index = 0
    for a, b, value, index in ((x, y, row, i), (y, x, col, j)):
        at = sample(a.shape[0], a.device)
        s = a[at].double() @ b.double().T
        own = at < b.shape[0]
        if below_positive:
            positive = (a[at[own]].double() * b[at[own]].double()).sum(1, keepdim=True)
            # A candidate within rounding of the positive may fall on either side.
            s[own] = s[own].masked_fill(s[own] >= positive - 2e-6, float("-inf"))
        s[own.nonzero().squeeze(1), at[own]] = float("-inf")
        best, where = s.max(1)
        index = index[at].long()
        chosen = s.gather(1, index.clamp(min=0)[:, None]).squeeze(1)
        both = torch.isfinite(best) & torch.isfinite(chosen)
        worst["value"] = max(worst["value"], largest(value[at].double()[both] - chosen[both]))
        worst["regret"] = max(worst["regret"], largest((best - chosen)[both]))
        other_index += int((index != where)[torch.isfinite(best)].sum())
    return {**worst, "other_index": other_index}


def top_k(x, y, result):
    row, _, col, _ = result
    worst = 0.0
    for a, b, value in ((x, y, row), (y, x, col)):
        at = sample(a.shape[0], a.device)
        s = a[at].double() @ b.double().T
        own = at < b.shape[0]
        s[own.nonzero().squeeze(1), at[own]] = float("-inf")
        worst = max(worst, largest(value[at].double() - s.topk(value.shape[1], 1).values))
    return {"value": worst}


def row_col_lse(x, y, scale, chunk=2048):
    rows, col = [], None
    y = y.double()
    for first in range(0, x.shape[0], chunk):
        z = x[first : first + chunk].double() @ y.T * scale
        rows.append(z.logsumexp(1))
        part = z.logsumexp(0)
        col = part if col is None else torch.logaddexp(col, part)
    return torch.cat(rows), col


def lse(wanted, result):
    return {"max_abs": max(largest(found.double() - right) for found, right in zip(result, wanted))}


def clip_loss(x, y, scale, wanted):
    positive = scale * (x.double() * y.double()).sum(1)
    return float(((wanted[0] - positive).mean() + (wanted[1] - positive).mean()) / 2)


def clip(x, y, scale, wanted, result):
    """Gradients with respect to unit rows."""
    n = x.shape[0]
    worst = 0.0
    for a, b, own, other, found in ((x, y, *wanted, result[0]), (y, x, *reversed(wanted), result[1])):
        at = sample(n, a.device)
        z = a[at].double() @ b.double().T * scale
        w = torch.exp(z - own[at][:, None]) + torch.exp(z - other[None, :])
        w[torch.arange(len(at), device=a.device), at] -= 2
        worst = max(worst, relative(found[at], w @ b.double() * (scale / (2 * n))))
    return {"relative": worst}


def siglip(x, y, scale, bias, result):
    n = x.shape[0]
    worst = 0.0
    for a, b, found in ((x, y, result[0]), (y, x, result[1])):
        at = sample(n, a.device)
        z = a[at].double() @ b.double().T * scale + bias
        w = torch.sigmoid(z)
        w[torch.arange(len(at), device=a.device), at] -= 1
        worst = max(worst, relative(found[at], w @ b.double() * (scale / n)))
    return {"relative": worst}


def sparse(x, y, rows, cols, values, result):
    worst = 0.0
    for targets, sources, other, found in ((rows, cols, y, result[0]), (cols, rows, x, result[1])):
        # The target with the most terms too.
        at = torch.cat([sample(found.shape[0], x.device), torch.bincount(targets.long()).argmax()[None]])
        for target in at.tolist():
            mine = (targets == target).nonzero().squeeze(1)
            wanted = (values[mine].double()[:, None] * other[sources[mine].long()].double()).sum(0)
            scale = max(largest(wanted), 1.0)
            worst = max(worst, largest(found[target].double() - wanted) / scale)
    return {"relative": worst}


def whole(wanted, result):
    """Gradients against those of the same formulas in f64, all rows."""
    return {"relative": max(relative(found, right) for found, right in zip(result, wanted))}


def rank(x, y, row_ids, col_ids):
    """The f64 rank of the best positive of sampled queries, both ways, and the queries."""
    ranks = []
    for a, b, ids, others in ((x, y, row_ids, col_ids), (y, x, col_ids, row_ids)):
        at = sample(a.shape[0], a.device)
        s = a[at].double() @ b.double().T
        own = others[None, :] == ids[at][:, None]
        best = s.masked_fill(~own, float("-inf")).max(1, keepdim=True).values
        ranks.append((at, ((s > best) & ~own).sum(1)))
    return ranks
