"""The library for ctypes, in SIMGRAD_REPORT_LIBRARY: its struct is this package's, and where there is a device it computes."""

import array
import os
import unittest

from gpu_report import simgrad

PATH = os.environ.get("SIMGRAD_REPORT_LIBRARY")


def call(op, n, m, d, **fields):
    return simgrad.Call(op=simgrad.OPS[op], n=n, m=m, d=d, batch=1, scale=1.0, **fields)


@unittest.skipUnless(PATH, "SIMGRAD_REPORT_LIBRARY is not set")
class OnADevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.lib = simgrad.Library(PATH)
        except simgrad.Failed as reason:
            if "not of one commit" in str(reason) or os.environ.get("SIMGRAD_REQUIRE_GPU", "0") not in ("", "0"):
                raise
            raise unittest.SkipTest(f"no device: {reason}")

    def upload(self, data):
        size = len(data) * data.itemsize
        address = self.lib.alloc(size)
        self.lib.upload(address, data.buffer_info()[0], size)
        self.addCleanup(self.lib.free, address)
        return address

    def read(self, kind, address, count):
        data = array.array(kind, bytes(4 * count))
        self.lib.download(data.buffer_info()[0], address, 4 * count)
        return list(data)

    def test_hardest_negatives_are_those_of_a_loop(self):
        n, m, d = 5, 4, 3
        numbers = [((7 * i) % 11 - 5) / 4 for i in range((n + m) * d)]
        x, y = array.array("f", numbers[: n * d]), array.array("f", numbers[n * d :])
        c = call("mine", n, m, d, x=self.upload(x), y=self.upload(y))
        workspace, sizes = self.lib.sizes(c)
        self.assertEqual(sizes[:5], [4 * min(n, m), 4 * n, 4 * n, 4 * m, 4 * m])
        for at, size in enumerate(sizes):
            c.outputs[at] = self.upload(array.array("b", bytes(size))) if size else 0
        c.workspace, c.workspace_bytes = self.upload(array.array("b", bytes(workspace))), workspace
        self.lib.enqueue(c, 0)
        self.lib.synchronize()
        s = [[sum(x[i * d + k] * y[j * d + k] for k in range(d)) for j in range(m)] for i in range(n)]
        rows = [max((s[i][j], -j) for j in range(m) if j != i) for i in range(n)]
        cols = [max((s[i][j], -i) for i in range(n) if j != i) for j in range(m)]
        # Multiples of 1/16: sums in f32 are exact.
        self.assertEqual(self.read("f", c.outputs[1], n), [value for value, _ in rows])
        self.assertEqual(self.read("i", c.outputs[2], n), [-j for _, j in rows])
        self.assertEqual(self.read("f", c.outputs[3], m), [value for value, _ in cols])
        self.assertEqual(self.read("i", c.outputs[4], m), [-i for _, i in cols])

    def test_what_is_wrong_with_a_call_is_said(self):
        with self.assertRaisesRegex(simgrad.Failed, "op"):
            self.lib.sizes(simgrad.Call(op=99))
        with self.assertRaisesRegex(simgrad.Failed, "dtype"):
            self.lib.sizes(call("mine", 2, 2, 2, dtype=7))
        with self.assertRaisesRegex(simgrad.Failed, "goal_step"):
            # More rows than columns.
            self.lib.enqueue(call("goal_step", 3, 2, 2), 0)

    def test_facts_are_json(self):
        facts = self.lib.facts()
        self.assertIn("emulated", facts)
        self.assertGreater(facts["multiprocessors"], 0)


@unittest.skipUnless(PATH, "SIMGRAD_REPORT_LIBRARY is not set")
class Layout(unittest.TestCase):
    def test_the_struct_is_the_library_s(self):
        import ctypes

        lib = ctypes.CDLL(PATH)
        lib.simgrad_call_bytes.restype = ctypes.c_uint64
        self.assertEqual(lib.simgrad_call_bytes(), ctypes.sizeof(simgrad.Call))

    def test_sizes_follow_the_fields(self):
        import ctypes

        lib = ctypes.CDLL(PATH)
        sizes = simgrad.Sizes()
        # Every extent another one, so that a field at a wrong place shows.
        c = call("mine_top_k", 5, 7, 3, k=2)
        self.assertEqual(lib.simgrad_sizes(ctypes.byref(c), ctypes.byref(sizes)), 0)
        self.assertEqual(list(sizes.outputs), [20, 40, 40, 20, 56, 56, 28])
        c = call("cosine_matrix", 5, 7, 3, out_dtype=simgrad.DTYPES["bf16"])
        c.batch = 11
        self.assertEqual(lib.simgrad_sizes(ctypes.byref(c), ctypes.byref(sizes)), 0)
        self.assertEqual(sizes.outputs[0], 11 * 5 * 7 * 2)


if __name__ == "__main__":
    unittest.main()
