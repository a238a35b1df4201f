"""What needs neither a GPU nor PyTorch: figures from samples, resuming, rendering, what is packed and how it is read back."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest

from gpu_report import bundle, cases, parts, render, stats, store, turns

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "gpu-report"


class Stats(unittest.TestCase):
    def test_percentiles_are_interpolated(self):
        self.assertEqual(stats.percentile([3, 1, 2], 50), 2)
        self.assertEqual(stats.percentile([4, 1, 3, 2], 50), 2.5)
        self.assertEqual(stats.percentile(list(range(11)), 10), 1)
        self.assertEqual(stats.percentile(list(range(11)), 90), 9)
        self.assertEqual(stats.percentile([7], 90), 7)
        self.assertEqual(stats.summary([5, 1, 3])["p10"], 1 + 0.2 * 2)
        for samples, q in (([], 50), ([1], 101), ([1], -1)):
            with self.assertRaises(ValueError):
                stats.percentile(samples, q)

    def test_every_other_side_stands_between_two_turns_of_the_first(self):
        order = stats.turns("a", ["b", "c"], 2)
        self.assertEqual("".join(order), "abacabaca")
        self.assertEqual(stats.turns("a", [], 3), ["a", "a", "a"])

    def test_samples_come_in_turns_until_the_time_is_over(self):
        clock = [0.0]

        def sample(name):
            clock[0] += 1
            return clock[0]

        collect = lambda seconds: stats.collect("a", ["b", "c"], sample, 9, 2, seconds, lambda: clock[0])
        order, samples, failed = collect(1)
        self.assertEqual("".join(order), "abaca" + "baca")
        self.assertEqual((samples, failed), ([float(n) for n in range(1, 10)], {}))
        self.assertEqual(len(collect(1000)[0]), 5 + 8 * 4)
        self.assertEqual(stats.collect("a", [], sample, 3, 1, 1000, lambda: clock[0])[0], ["a"] * 3)

    def test_a_side_that_fails_takes_no_further_turn(self):
        turns = []

        def sample(name):
            turns.append(name)
            if name == "b" and turns.count("b") == 2:
                raise MemoryError("b")
            return 1.0

        order, samples, failed = stats.collect("a", ["b", "c"], sample, 3, 3, 0)
        self.assertEqual("".join(order), "abaca" + "aca" + "ca")
        self.assertEqual(len(samples), len(order))
        self.assertEqual([*failed], ["b"])

        def never(name):
            raise MemoryError(name)

        with self.assertRaises(MemoryError):
            stats.collect("a", ["b"], never, 3, 3, 0)

    def test_ratios_are_to_the_neighbours_mean(self):
        order = stats.turns("a", ["b", "c"], 1)
        # The clock falls by half in the middle: b and c both take twice as long as their neighbours.
        ratios = stats.paired_ratios(order, [1, 2, 1, 3, 2], "a")
        self.assertEqual(ratios, {"b": [2.0], "c": [2.0]})
        self.assertEqual(stats.paired_ratios(["a", "b"], [1, 3], "a"), {"b": [3.0]})
        with self.assertRaises(ValueError):
            stats.paired_ratios(["a"], [], "a")

    def test_drift_is_relative_to_before(self):
        self.assertAlmostEqual(stats.drift(800, 760), -0.05)


class Resume(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name)

    def part(self, identity):
        return store.Part(self.out, "bench", identity)

    def test_a_cut_run_goes_on_where_it_was(self):
        first = self.part({"card": "x"})
        self.assertEqual(first.resume(), "no earlier results")
        first.put("1", {"ok": True})
        first.finish(["1", "2"])
        second = self.part({"card": "x"})
        self.assertIsNone(second.resume())
        self.assertEqual(second.missing(["1", "2"]), ["2"])
        self.assertFalse(second.complete)
        second.put("2", {"ok": False})
        second.finish(["1", "2"])
        third = self.part({"card": "x"})
        self.assertIsNone(third.resume())
        # A failure is a result: it is not tried again behind one's back.
        self.assertEqual(third.missing(["1", "2"]), [])
        self.assertTrue(third.complete)

    def test_results_of_another_card_bundle_or_mode_are_not_added_to(self):
        self.part({"card": "x", "rehearsal": True}).put("1", {})
        other = self.part({"card": "x", "rehearsal": False})
        self.assertIn("another run", other.resume())
        self.assertEqual(other.missing(["1"]), ["1"])

    def test_a_broken_file_is_no_result(self):
        (self.out / "bench.json").write_text('{"version": 1, "cel')
        self.assertIn("not JSON", self.part({}).resume())

    def test_writing_leaves_no_other_file(self):
        self.part({}).put("1", {})
        store.write_atomically(self.out / "report.md", "text")
        self.assertEqual(sorted(os.listdir(self.out)), ["bench.json", "report.md"])

    def test_a_part_stops_between_cells_when_its_time_is_up(self):
        script = load_script()
        clock = [0.0]
        script.time = types.SimpleNamespace(monotonic=lambda: clock[0])
        ran = []

        def run_cell(part, setup, name, timeout):
            ran.append((name, timeout))
            clock[0] += 300
            return {"ok": True}

        script.run_cell = run_cell
        kept = self.part({})
        names = ["1", "2", "3"]
        self.assertFalse(script.run_part("bench", None, kept, names, 480))
        # 180 seconds were left for the second one, and none for the third.
        self.assertEqual(ran, [("1", 420), ("2", 180)])
        self.assertTrue(script.run_part("bench", None, kept, names, 480))
        self.assertEqual([name for name, _ in ran], names)

    def test_a_cell_that_was_cut_short_by_the_part_is_put_off(self):
        script = load_script()
        clock = [0.0]
        script.time = types.SimpleNamespace(monotonic=lambda: clock[0])

        def run_cell(part, setup, name, timeout):
            clock[0] += min(timeout, 310)
            return {"ok": False, "timed_out": timeout} if name == "2" else {"ok": True}

        script.run_cell = run_cell
        kept = self.part({})
        self.assertFalse(script.run_part("bench", None, kept, ["1", "2"], 480))
        self.assertEqual(kept.missing(["1", "2"]), ["2"])
        # With the whole time for itself it has failed.
        self.assertTrue(script.run_part("bench", None, kept, ["1", "2"], 480))
        self.assertEqual(kept.data["cells"]["2"]["timed_out"], 420)

    def test_several_cells_run_at_once(self):
        script = load_script()
        meeting = threading.Barrier(3)

        def run_cell(part, setup, name, timeout):
            meeting.wait(20)
            return {"ok": True, "timeout": timeout}

        script.run_cell = run_cell
        kept, names = self.part({}), ["1", "2", "3", "4", "5", "6"]
        with Quiet() as printed:
            self.assertTrue(script.run_part("bench", None, kept, names, 5000, 3))
        self.assertEqual(sorted(kept.data["cells"]), names)
        self.assertEqual(sorted(line for line in printed.text().splitlines()), [f"bench: {name} ok" for name in names])
        # Waiting for the others' turns is within a cell's time.
        self.assertTrue(all(cell["timeout"] == 3 * 420 for cell in kept.data["cells"].values()))

    def test_what_is_timed_is_alone(self):
        path = self.out / "turns"
        inside, seen = [], []

        def cell(at):
            mine = turns.Turns(path)
            with mine.together():
                meeting.wait(20)
            for _ in range(20):
                with mine.alone():
                    inside.append(at)
                    seen.append(len(inside))
                    time.sleep(0.0005)
                    inside.remove(at)

        meeting = threading.Barrier(4)
        threads = [threading.Thread(target=cell, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        self.assertEqual(seen, [1] * 80)
        # Without a file nobody waits for anybody.
        with turns.Turns().alone(), turns.Turns().alone():
            pass


def load_script():
    """The script as a module of its own each time."""
    module = types.ModuleType("gpu_report_script")
    module.__file__ = str(SCRIPT)
    sys.modules["gpu_report_script"] = module
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), module.__dict__)
    return module


def results(rehearsal=False, emulated=False, correct=True):
    """The parts of a small report."""
    identity = {"rehearsal": rehearsal}
    times = {"median": 2e-4, "p10": 1.9e-4, "p90": 2.1e-4, "samples": 20}
    machine = {
        "ok": True,
        "rehearsal": rehearsal,
        "date": "2031-02-03T04:05:06+00:00",
        "torch": "9.9",
        "triton": None,
        "nvidia_smi": "name, driver_version, clocks.max.sm [MHz]\nCard, 999.1, 1980 MHz",
        "bundle": {"commit": "0123456789abcdef", "modified": False},
        "simgrad": {"device": "Card", "compute_capability": "9.0", "multiprocessors": 132, "built_for": "sm_90a", "emulated": emulated},
    }
    case = {
        "title": "hardest negatives",
        "extents": [16384, 16384, 512],
        "dtype": "bf16",
        "target": "0.82 R",
        "ceilings": {"before": {"tflops": 780.0, "tbps": 4.2}, "after": {"tflops": 790.0, "tbps": 4.3}, "drift": {"tflops": 0.0128, "tbps": 0.024}},
        "sides": {
            "simgrad": {"seconds": times, "of_floor": 0.83, "of_R": 0.83, "of_BW": 0.04, "bytes": 5_000_000, "error": {"value": 1e-7}, "correct": correct},
            "eager": {"seconds": {**times, "median": 1e-3}, "bytes": 2_000_000_000, "correct": None, "times_simgrad": {**times, "median": 5.0}},
            "triton": {"skipped": "triton is not installed"},
        },
    }
    part = lambda cells: {"identity": identity, "complete": True, "cells": cells}
    tests = {"mine": {"ok": True, "passed": 7, "failed": 0}, "goal": {"ok": False, "passed": 3, "failed": 1}}
    return {"facts": part({"machine": machine}), "correctness": part(tests), "bench": part({"4": case})}


class Render(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "docs").mkdir()
        for path in (self.root / "README.md", self.root / "docs" / "benchmarks.md"):
            path.write_text(f"before\n\n{render.BEGIN}\nold\n{render.END}\n\nafter\n")

    def texts(self):
        return [(self.root / path).read_text() for path in ("README.md", "docs/benchmarks.md")]

    def test_the_table_has_what_was_measured(self):
        text = render.table(results())
        for part in (
            "| 4 | hardest negatives | 16,384 × 16,384, 512, bf16 | 200 µs (190 µs – 210 µs) | 0.83 (0.83, 0.04) | 0.82 R | 5 MB |",
            "eager 1.00 ms = 5.00 ×, 2.00 GB",
            "triton: not run (triton is not installed)",
            "R = 780 to 790 TFLOP/s",
            "driver_version 999.1",
            "10 passed, 1 failed in 2 binaries; **not all right:** goal",
        ):
            self.assertIn(part, text)
        self.assertNotIn("REHEARSAL", text)

    def test_times_have_three_figures(self):
        shown = [render.seconds(v) for v in (1.234e-6, 1.234e-5, 2.345e-4, 0.0123, 0.5, 12.34)]
        self.assertEqual(shown, ["1.23 µs", "12.3 µs", "234 µs", "12.3 ms", "500 ms", "12.3 s"])

    def test_a_wrong_result_has_no_speed(self):
        text = render.table(results(correct=False))
        self.assertIn("**wrong result**", text)
        self.assertNotIn("200 µs (", text)

    def test_rendering_twice_is_rendering_once(self):
        self.assertEqual(render.into_files(results(), self.root), 0)
        first = self.texts()
        self.assertEqual(render.into_files(results(), self.root), 0)
        self.assertEqual(self.texts(), first)
        for text in first:
            self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))
            self.assertNotIn("old", text)
            self.assertIn("| 4 |", text)

    def test_figures_of_a_rehearsal_or_an_emulator_are_written_nowhere(self):
        before = self.texts()
        inner = results()
        inner["bench"]["cells"]["4"]["rehearsal"] = True
        unsaid = results()
        del unsaid["bench"]["identity"]["rehearsal"]
        for parts_ in (results(rehearsal=True), results(emulated=True), inner, unsaid):
            with self.subTest(parts_["facts"]["identity"]), Quiet() as printed:
                self.assertEqual(render.into_files(parts_, self.root), 1)
                self.assertIn("REHEARSAL", printed.text())
            self.assertEqual(self.texts(), before)

    def test_without_facts_nothing_is_rendered(self):
        before = self.texts()
        without = results()
        del without["facts"]
        with Quiet():
            self.assertEqual(render.into_files(without, self.root), 1)
        self.assertEqual(self.texts(), before)

    def test_both_documents_or_none(self):
        (self.root / "docs" / "benchmarks.md").write_text("no marks")
        before = self.texts()
        with Quiet():
            self.assertEqual(render.into_files(results(), self.root), 1)
        self.assertEqual(self.texts(), before)

    def test_the_repository_has_the_marks(self):
        root = SCRIPT.parents[1]
        for path in (root / "README.md", root / "docs" / "benchmarks.md"):
            render.between_markers(path.read_text(), "text")

    def test_incomplete_parts_are_named(self):
        cut = results()
        cut["bench"]["complete"] = False
        self.assertIn("**Not complete:** bench (1 cells)", render.table(cut))


class Quiet:
    """Keeps what is printed."""

    def __enter__(self):
        import io

        self.kept, self.streams = io.StringIO(), (sys.stdout, sys.stderr)
        sys.stdout = sys.stderr = self.kept
        return self

    def text(self):
        return self.kept.getvalue()

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.streams


class Packing(unittest.TestCase):
    def test_a_program_is_put_together_again(self):
        images = {"a": b"A" * 100, "b": b"BBBBxyz" * 9, "inner": b"BBxyzBB", "absent": b"absent", "empty": b""}
        program = b"head" + images["a"] + b"middle" + images["b"] + images["a"] + b"tail"
        places, rest = bundle.hollow(program, images)
        self.assertEqual(rest, b"headmiddletail")
        self.assertEqual([name for _, name in places], ["a", "b", "a"])
        self.assertEqual(bundle.fill(json.loads(json.dumps(places)), rest, images), program)
        self.assertEqual(bundle.fill(*bundle.hollow(b"nothing", images), images), b"nothing")

    def test_what_needs_its_tree_or_no_device_is_left_out(self):
        device = "#[test] fn a() { if device().is_none() {} }"
        self.assertIsNone(bundle.why_left_out("mine", [device]))
        self.assertIsNone(bundle.why_left_out("cuda_shapes", ["#[test] fn a() {}"]))
        self.assertIn("no test that runs on CUDA", bundle.why_left_out("plain", ["#[test] fn a() {}"]))
        self.assertIsNone(bundle.why_left_out("own", ['#![cfg(feature = "cuda")]\n#[test] fn a() {}']))
        reason = bundle.why_left_out("presence", [device, 'env!("CARGO_MANIFEST_DIR")'])
        self.assertIn("CARGO_MANIFEST_DIR", reason)

    def test_every_test_of_the_repository_that_names_the_device_is_chosen(self):
        # A file of tests that speaks of a CUDA handle and is left out all the same would never be run on a card.
        for path in sorted((SCRIPT.parents[1] / "tests").glob("*.rs")):
            text = path.read_text()
            reason = bundle.why_left_out(path.stem, [text])
            if reason and "compiled in" not in reason:
                self.assertNotRegex(text, r"simgrad::cuda|CudaContext|Backend::cuda", path.name)

    def test_the_newest_glibc_is_found(self):
        self.assertEqual(bundle.newest_glibc(b"..GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.9\0"), (2, 34))
        self.assertEqual(bundle.newest_glibc(b""), (0, 0))

    def test_an_old_system_is_told_so(self):
        setup = types.SimpleNamespace(bundle=types.SimpleNamespace(manifest={"glibc": [99, 1]}))
        name, _ = parts.platform.libc_ver()
        if name == "glibc":
            self.assertIn("needs glibc 99.1", parts.old_glibc(setup))
        setup.bundle.manifest["glibc"] = [2, 0]
        self.assertIsNone(parts.old_glibc(setup))


class Output(unittest.TestCase):
    SUITE = "running 2 tests\ntest a ... ok\ntest b ... FAILED\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n"

    def test_the_binary_s_own_summary_counts(self):
        text = self.SUITE + "test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s\n"
        self.assertEqual(parts.test_counts(text), {"passed": 5, "failed": 1, "ignored": 2, "failed_tests": ["b"]})
        self.assertIsNone(parts.test_counts("Segmentation fault"))

    def test_findings_belong_to_the_cell_they_stand_behind(self):
        names = ["mine/f32/1x1x1", "mine/f16/1x1x1", "mine/bf16/1x1x1"]
        text = (
            "========= COMPUTE-SANITIZER\n{}\n"
            'cell mine/f32/1x1x1\n{"cell":"mine/f32/1x1x1"}\n'
            'cell mine/f16/1x1x1\n========= Invalid __global__ read of size 4 bytes\n{"cell":"mine/f16/1x1x1"}\n'
            "========= ERROR SUMMARY: 1 error\n"
        )
        found = parts.sanitized(99, text, names)
        self.assertFalse(found["ok"])
        self.assertEqual(found["findings"], 1)
        self.assertEqual([found["cells"][name]["ok"] for name in names], [True, False, False])

    def test_a_clean_run_is_clean(self):
        text = '========= COMPUTE-SANITIZER\ncell a/f32/1x1x1\n{"cell":"a/f32/1x1x1"}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n'
        self.assertTrue(parts.sanitized(0, text, ["a/f32/1x1x1"])["ok"])
        # Without a summary the tool has not looked.
        self.assertFalse(parts.sanitized(0, text.split("========= RACE")[0], ["a/f32/1x1x1"])["ok"])
        self.assertFalse(parts.sanitized(0, text.replace("0 hazards", "2 hazards"), ["a/f32/1x1x1"])["ok"])
        failed = text.replace('{"cell":"a/f32/1x1x1"}', '{"cell":"a/f32/1x1x1","error":"no"}')
        self.assertFalse(parts.sanitized(0, failed, ["a/f32/1x1x1"])["ok"])

    def test_a_program_that_hangs_is_ended_with_its_children(self):
        code, text = parts.command(["sh", "-c", "echo begun; sleep 60 & sleep 60"], 0.5)
        self.assertIsNone(code)
        self.assertIn("begun", text)
        self.assertEqual(parts.command(["sh", "-c", "echo out; echo err >&2; exit 3"], 20), (3, "out\nerr\n"))


class Cases(unittest.TestCase):
    def test_all_sixteen_are_there(self):
        numbers = {case.key.split("-")[0].rstrip("asuh") for case in cases.CASES}
        self.assertEqual(numbers, {str(n) for n in range(1, 17)})
        self.assertEqual(len(cases.BY_KEY), len(cases.CASES))

    def test_floors_count_products_and_bytes(self):
        case = cases.BY_KEY["1"]
        self.assertEqual(case.bytes(case.shape, case.dtype), 2 * 16384 * 512 * 2 + 16384 * 16384 * 4)
        batched = cases.BY_KEY["3"]
        self.assertEqual(batched.bytes(batched.shape, batched.dtype), 64 * (2 * 512 * 512 * 2 + 512 * 512 * 4))


class CommandLine(unittest.TestCase):
    def run_script(self, *arguments):
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def test_wrong_use_says_what_to_do(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.run_script(folder, "--cell", "4")[0], 2)
            code, text = self.run_script(folder, "--bundle", folder)
            self.assertEqual(code, 1)
            self.assertIn("scripts/gpu-bundle", text)
            code, text = self.run_script("--render", folder)
            self.assertEqual(code, 1)
            self.assertIn("not rendered", text)


if __name__ == "__main__":
    unittest.main()
