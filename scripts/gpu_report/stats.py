"""Percentiles, the order of turns, and ratios of interleaved samples."""

import time


def percentile(samples, q):
    """The q-th percentile, 0 to 100, interpolated linearly between order statistics."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= q <= 100:
        raise ValueError(f"{q} is no percentile")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * q / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(samples):
    """Median, p10, p90 and the number of samples."""
    return {"median": percentile(samples, 50), "p10": percentile(samples, 10), "p90": percentile(samples, 90), "samples": len(samples)}


def turns(first, others, rounds):
    """The order of samples: `first` before and after each of `others`, so that a drift of clocks meets both alike (A/B/A)."""
    order = []
    for _ in range(rounds):
        for other in others or [None]:
            order.append(first)
            if other is not None:
                order.append(other)
    if others:
        order.append(first)
    return order


def collect(first, others, sample, rounds, fewest, seconds, clock=time.perf_counter):
    """Samples in the order of `turns`: `rounds` of them, or fewer once `seconds` are over, but at least `fewest`.

    Returns the order, the samples, and for every side that failed on the way the exception; it takes no further turn. That of
    `first` is raised.
    """
    others, order, samples, failed = list(others), [], [], {}
    begin = clock()
    for done in range(rounds):
        if done >= fewest and clock() - begin > seconds:
            break
        one = turns(first, others, 1)
        # The last turn of a round is the first one of the next.
        for name in one[1:] if order and others else one:
            try:
                found = sample(name)
            except Exception as error:
                if name == first:
                    raise
                failed[name] = error
                others.remove(name)
                continue
            order.append(name)
            samples.append(found)
    return order, samples, failed


def paired_ratios(order, samples, first):
    """For every other side the ratios of each of its samples to the mean of the samples of `first` beside it.

    `order` is that of `turns`, `samples` the times in the same order. Above 1: `first` is the faster one.
    """
    if len(order) != len(samples):
        raise ValueError(f"{len(order)} turns and {len(samples)} samples")
    ratios = {}
    for at, name in enumerate(order):
        if name == first:
            continue
        beside = [samples[i] for i in (at - 1, at + 1) if 0 <= i < len(order) and order[i] == first]
        if beside:
            ratios.setdefault(name, []).append(samples[at] * len(beside) / sum(beside))
    return ratios


def drift(before, after):
    """Relative change from `before` to `after`."""
    return (after - before) / before
