"""simgrad in this process, through ctypes. The library is `benches/gpu_report/lib.rs`."""

import ctypes
import json

OUTPUTS = 7
OPS = {
    "normalize": 0,
    "cosine_matrix": 1,
    "mine": 2,
    "mine_top_k": 3,
    "weighted_grad": 4,
    "goal_step": 5,
    "mined_triplet_step": 6,
    "pairwise_step": 7,
    "pairwise_statistics": 8,
    "ranks": 9,
}
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}
GOAL_OBJECTIVES = {"hinge-con": 0, "nca-sig": 1, "cir-sig_ms": 2}
PAIRWISE_OBJECTIVES = {"infonce": 0, "siglip": 1}


class Call(ctypes.Structure):
    """Twin of `Call` in `benches/gpu_report/call.rs`."""

    _fields_ = [
        ("op", ctypes.c_uint32),
        ("dtype", ctypes.c_uint32),
        ("out_dtype", ctypes.c_uint32),
        ("normalize", ctypes.c_uint32),
        ("objective", ctypes.c_uint32),
        ("semi_hard", ctypes.c_uint32),
        ("batch", ctypes.c_uint64),
        ("n", ctypes.c_uint64),
        ("m", ctypes.c_uint64),
        ("d", ctypes.c_uint64),
        ("k", ctypes.c_uint64),
        ("scale", ctypes.c_double),
        ("bias", ctypes.c_double),
        ("wave_bytes", ctypes.c_uint64),
        ("keep_bytes", ctypes.c_uint64),
        ("x", ctypes.c_uint64),
        ("y", ctypes.c_uint64),
        ("inputs", ctypes.c_uint64 * 3),
        ("outputs", ctypes.c_uint64 * OUTPUTS),
        ("workspace", ctypes.c_uint64),
        ("workspace_bytes", ctypes.c_uint64),
    ]


class Sizes(ctypes.Structure):
    _fields_ = [("workspace", ctypes.c_uint64), ("outputs", ctypes.c_uint64 * OUTPUTS)]


class Failed(Exception):
    """What the library says of a call that it refused."""


class Library:
    def __init__(self, path):
        lib = self.lib = ctypes.CDLL(str(path))
        pointer, u64, i32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32
        for name, result, arguments in [
            ("simgrad_error", ctypes.c_char_p, []),
            ("simgrad_call_bytes", u64, []),
            ("simgrad_open", pointer, [ctypes.c_uint32]),
            ("simgrad_facts", ctypes.c_char_p, [pointer]),
            ("simgrad_sizes", i32, [ctypes.POINTER(Call), ctypes.POINTER(Sizes)]),
            ("simgrad_enqueue", i32, [pointer, ctypes.POINTER(Call), u64]),
            ("simgrad_alloc", u64, [pointer, u64]),
            ("simgrad_free", i32, [pointer, u64]),
            ("simgrad_upload", i32, [pointer, u64, pointer, u64]),
            ("simgrad_download", i32, [pointer, pointer, u64, u64]),
            ("simgrad_synchronize", i32, [pointer]),
        ]:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        if lib.simgrad_call_bytes() != ctypes.sizeof(Call):
            raise Failed(f"the library's call has {lib.simgrad_call_bytes()} bytes, this script's {ctypes.sizeof(Call)}: they are not of one commit")
        self.session = lib.simgrad_open(0)
        if not self.session:
            raise Failed(self.error())

    def error(self):
        return lib_text(self.lib.simgrad_error())

    def check(self, code):
        if code != 0:
            raise Failed(self.error())

    def facts(self):
        return json.loads(lib_text(self.lib.simgrad_facts(self.session)))

    def sizes(self, call):
        sizes = Sizes()
        self.check(self.lib.simgrad_sizes(ctypes.byref(call), ctypes.byref(sizes)))
        return int(sizes.workspace), [int(bytes_) for bytes_ in sizes.outputs]

    def enqueue(self, call, stream):
        self.check(self.lib.simgrad_enqueue(self.session, ctypes.byref(call), stream))

    def alloc(self, size):
        address = self.lib.simgrad_alloc(self.session, size)
        if not address:
            raise Failed(self.error())
        return address

    def free(self, address):
        self.check(self.lib.simgrad_free(self.session, address))

    def upload(self, address, source, size):
        self.check(self.lib.simgrad_upload(self.session, address, source, size))

    def download(self, target, address, size):
        self.check(self.lib.simgrad_download(self.session, target, address, size))

    def synchronize(self):
        self.check(self.lib.simgrad_synchronize(self.session))


def lib_text(raw):
    return (raw or b"").decode(errors="replace")
