"""Where a case runs: on the card, or, in a rehearsal, PyTorch on the CPU and simgrad on whatever driver answers.

The report proper works on PyTorch's tensors and stream. A rehearsal copies tensors to memory of simgrad's own and back, because PyTorch
does not know that memory.
"""

import time

import torch

from . import simgrad

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Beyond any L2 by far: what a call reads was not read since.
ROTATION_BYTES = 180_000_000


class Card:
    rehearsal = False

    def __init__(self, lib):
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        self.lib, self.device = lib, torch.device("cuda", 0)
        torch.cuda.set_device(0)
        self.name = torch.cuda.get_device_name(0)

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def synchronize(self):
        torch.cuda.synchronize()

    def give(self, tensor):
        """The address of what the call reads."""
        return tensor.data_ptr()

    def room(self, size):
        """Memory for what the call writes: its address, and what keeps it alive."""
        memory = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
        return memory.data_ptr(), memory

    def take(self, memory, size):
        return memory[:size]

    def peak(self, run):
        """Bytes that `run` allocates at most at a time, its results included."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def sample(self, run):
        """Device seconds of what `run` enqueues."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def graph(self, run):
        """`run` as a graph; its replay."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


class Rehearsal:
    rehearsal = True
    name = "rehearsal: no GPU"

    def __init__(self, lib):
        self.lib, self.device = lib, torch.device("cpu")
        self.kept = []

    def stream(self):
        return 0

    def synchronize(self):
        self.lib.synchronize()

    def give(self, tensor):
        tensor = tensor.contiguous()
        size = tensor.numel() * tensor.element_size()
        address = self.lib.alloc(size)
        self.lib.upload(address, tensor.data_ptr(), size)
        return address

    def room(self, size):
        address = self.lib.alloc(max(size, 1))
        return address, address

    def take(self, memory, size):
        taken = torch.empty(size, dtype=torch.uint8)
        self.lib.synchronize()
        self.lib.download(taken.data_ptr(), memory, size)
        return taken

    def peak(self, run):
        run()
        return None

    def sample(self, run):
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def graph(self, run):
        return run


class Operation:
    """A simgrad call on each of several sets of inputs, with one set of outputs and one workspace."""

    def __init__(self, place, op, sets, inputs=(), **fields):
        """`sets` are pairs of tensors x and y; `inputs` what else the call reads; `fields` those of `simgrad.Call`."""
        self.place, self.alive = place, [sets, inputs]
        x, y = sets[0]
        names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
        call = simgrad.Call(op=simgrad.OPS[op], dtype=simgrad.DTYPES[names[x.dtype]], batch=1, scale=1.0)
        (*batch, call.n, call.d), call.m = x.shape, y.shape[-2]
        call.batch = batch[0] if batch else 1
        for name, value in fields.items():
            setattr(call, name, value)
        for at, tensor in enumerate(inputs):
            call.inputs[at] = place.give(tensor)
        self.workspace_bytes, self.sizes = place.lib.sizes(call)
        self.outputs = []
        for at, size in enumerate(self.sizes):
            address, memory = place.room(size) if size else (0, None)
            call.outputs[at] = address
            self.outputs.append(memory)
        call.workspace, memory = place.room(self.workspace_bytes)
        call.workspace_bytes = self.workspace_bytes
        self.alive.append(memory)
        self.calls = []
        for x, y in sets:
            mine = simgrad.Call.from_buffer_copy(call)
            mine.x, mine.y = place.give(x), place.give(y)
            self.calls.append(mine)

    def __call__(self, at=0):
        self.place.lib.enqueue(self.calls[at % len(self.calls)], self.place.stream())

    def bytes(self):
        """Workspace and outputs: all memory that the call needs beside its inputs."""
        return self.workspace_bytes + sum(self.sizes)

    def output(self, at, dtype, *shape):
        self.place.synchronize()
        return self.place.take(self.outputs[at], self.sizes[at]).view(dtype).view(*shape)


def unit_rows(place, dtype, seed, *shape):
    """Gaussian rows of unit norm, made on the place's device; approximately unit after rounding to 16 bits."""
    generator = torch.Generator(place.device).manual_seed(seed)
    rows = torch.randn(shape, generator=generator, device=place.device)
    return torch.nn.functional.normalize(rows, dim=-1).to(TORCH[dtype])


def input_sets(place, dtype, shape_x, shape_y, most=None):
    """Pairs x, y, together beyond the L2; one pair in a rehearsal. Own pairs are alike, so that there is something to find."""
    size = 4 if dtype == "f32" else 2
    count = lambda shape: torch.Size(shape).numel()
    one = (count(shape_x) + count(shape_y)) * size
    sets = 1 if place.rehearsal else max(1, -(-ROTATION_BYTES // one))
    sets = min(sets, most or sets)
    pairs = []
    for at in range(sets):
        x, y = unit_rows(place, "f32", 2 * at + 1, *shape_x), unit_rows(place, "f32", 2 * at + 2, *shape_y)
        both = min(x.shape[-2], y.shape[-2])
        y[..., :both, :] += 0.1 * x[..., :both, :]
        pairs.append((x.to(TORCH[dtype]), torch.nn.functional.normalize(y, dim=-1).to(TORCH[dtype])))
    return pairs, one
