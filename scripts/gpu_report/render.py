"""The report as Markdown, and its way into README.md and docs/benchmarks.md."""

import pathlib
import sys

from . import cases, store

BEGIN, END = "<!-- gpu-report:begin -->", "<!-- gpu-report:end -->"
REHEARSAL = "**REHEARSAL: no GPU. These figures are of an emulator and of PyTorch on a CPU and say nothing about speed.**"


class Refused(Exception):
    pass


def is_rehearsal(parts):
    """Whether any figure is not of a GPU: by what the run was started as, and by what the driver was."""
    for part in parts.values():
        if part["identity"].get("rehearsal") is not False:
            return True
        for cell in part["cells"].values():
            if cell.get("rehearsal") or cell.get("simgrad", {}).get("emulated"):
                return True
    return False


def seconds(value):
    """Three figures, in the unit that suits."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            shown = value * factor
            digits = max(0, 2 - max(0, len(str(int(shown))) - 1))
            return f"{shown:.{digits}f} {unit}"
    raise AssertionError


def spread(summary):
    return f"{seconds(summary['median'])} ({seconds(summary['p10'])} – {seconds(summary['p90'])})"


def memory(count):
    return "–" if count is None else f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def shape(cell):
    *batch, n, m, d = cell["extents"]
    front = f"{batch[0]} × " if batch else ""
    return f"{front}{n:,} × {m:,}, {d}, {cell['dtype']}"


def side_text(name, side):
    if "skipped" in side:
        return f"{name}: not run ({side['skipped'][:80]})"
    times = f" = {side['times_simgrad']['median']:.2f} ×" if "times_simgrad" in side else ""
    if side.get("correct") is False:
        return f"{name}: **wrong result**"
    floor = f", {side['of_floor']:.2f} of the floor" if name.startswith("simgrad") else ""
    return f"{name} {seconds(side['seconds']['median'])}{times}, {memory(side['bytes'])}{floor}"


def error_text(errors):
    return ", ".join(f"{name} {value:.1e}" if isinstance(value, float) else f"{name} {value}" for name, value in errors.items())


def bench_rows(part):
    rows = [
        "| # | operation | n × m, d, type | simgrad: median (p10 – p90) | of the floor (of R, of BW) | target | memory | error | beside it: median = times simgrad's, memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = [case.key for case in cases.CASES]
    for key, cell in sorted(part["cells"].items(), key=lambda item: order.index(item[0])):
        if "sides" not in cell:
            rows.append(f"| {key} | | | not measured: {str(cell.get('skipped') or cell.get('error')).strip().splitlines()[-1][:120]} | | | | | |")
            continue
        ours, *others = cell["sides"].items()
        side = ours[1]
        # A wrong result has no speed.
        time = spread(side["seconds"]) if side["correct"] else "**wrong result**"
        beside = "; ".join(side_text(name, other) for name, other in others)
        rows.append(
            f"| {key} | {cell['title']} | {shape(cell)} | {time} | {side['of_floor']:.2f} ({side['of_R']:.2f}, {side['of_BW']:.2f}) | {cell['target']} | {memory(side['bytes'])} "
            f"| {error_text(side['error'])} | {beside} |"
        )
    return rows


def ceilings_text(part):
    """The rates over all cases, and how far they moved within one."""
    cells = [cell["ceilings"] for cell in part["cells"].values() if "ceilings" in cell]
    if not cells:
        return []
    both = [rates for cell in cells for rates in (cell["before"], cell["after"])]
    tflops, tbps = (sorted(rate[name] for rate in both) for name in ("tflops", "tbps"))
    drift = max(abs(value) for cell in cells for value in cell["drift"].values())
    return [
        f"Ceilings in the same processes: R = {tflops[0]:.0f} to {tflops[-1]:.0f} TFLOP/s (bf16 product of 8192³, random data), "
        f"BW = {tbps[0]:.2f} to {tbps[-1]:.2f} TB/s (copy of 1 GiB); largest change during a case {drift:.1%}. The floor is the longer of "
        "products at R and bytes at BW.",
        "",
    ]


def machine_lines(parts):
    machine = parts.get("facts", {}).get("cells", {}).get("machine", {})
    if not machine.get("ok"):
        raise Refused(f"there are no facts of the machine: {machine.get('error', 'the part facts is missing')}")
    device, made = machine["simgrad"], machine["bundle"]
    modified = ", with changes that no commit has" if made["modified"] else ""
    lines = [
        f"{device['device']}, compute capability {device['compute_capability']}, {device['multiprocessors']} multiprocessors; kernels for "
        f"{device['built_for']}; commit `{made['commit'][:12]}`{modified}; {machine['date'][:10]}; PyTorch {machine['torch'] or 'not installed'}, "
        f"Triton {machine['triton'] or 'not installed'}."
    ]
    if machine["nvidia_smi"]:
        names, values = (line.split(", ") for line in machine["nvidia_smi"].splitlines()[:2])
        wanted = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
        shown = [f"{name.split(' ')[0]} {value}" for name, value in zip(names, values) if name.split(" ")[0].startswith(wanted)]
        lines.append(f"nvidia-smi: {', '.join(shown)}.")
    return [*lines, ""]


def suite_lines(parts):
    lines = []
    if part := parts.get("correctness"):
        cells = part["cells"]
        count = lambda what: sum(cell.get(what, 0) for cell in cells.values())
        bad = [name for name, cell in cells.items() if not cell["ok"]]
        lines.append(f"* Tests: {count('passed')} passed, {count('failed')} failed in {len(cells)} binaries{'; **not all right:** ' + ', '.join(bad) if bad else ''}.")
    if part := parts.get("sanitizer"):
        for tool in dict.fromkeys(name.split("/")[0] for name in part["cells"]):
            runs = {name: cell for name, cell in part["cells"].items() if name.startswith(f"{tool}/")}
            skipped = [cell["skipped"] for cell in runs.values() if "skipped" in cell]
            cells = [inner for cell in runs.values() if "skipped" not in cell for inner in cell.get("cells", {}).values()]
            bad = [name for name, cell in runs.items() if "skipped" not in cell and not cell["ok"]]
            text = f"not run: {skipped[0]}" if skipped else f"{sum(cell['ok'] for cell in cells)} of {len(cells)} cells without a finding"
            lines.append(f"* compute-sanitizer {tool}: {text}{'; **findings:** ' + ', '.join(bad) if bad else ''}.")
    if part := parts.get("repeats"):
        cells = part["cells"]
        counts = sorted({cell["repeats"] for cell in cells.values() if "repeats" in cell})
        bad = [name for name, cell in cells.items() if not cell["ok"]]
        text = f"* Repeats: {sum(cell['ok'] for cell in cells.values())} of {len(cells)} cells have the same bits in {' and '.join(map(str, counts))} runs"
        lines.append(f"{text}{'; **not:** ' + ', '.join(bad) if bad else ''}.")
    unfinished = [f"{name} ({len(part['cells'])} cells)" for name, part in parts.items() if not part["complete"]]
    if unfinished:
        lines.append(f"* **Not complete:** {', '.join(unfinished)}.")
    return [*lines, ""] if lines else []


def latency_rows(part):
    rows = ["| step, type, n (d = 1024) | in a graph of 50 | a replay each | with a wait each |", "| --- | --- | --- | --- |"]
    by_size = lambda item: (*item[0].split("/")[:2], int(item[0].split("/")[2]))
    for key, cell in sorted(part["cells"].items(), key=by_size):
        if "seconds" not in cell:
            rows.append(f"| {key} | not measured: {str(cell.get('skipped') or cell.get('error')).strip().splitlines()[-1][:120]} | | |")
            continue
        shown = [spread(cell[name]) if name in cell else "–" for name in ("seconds", "seconds_per_replay", "seconds_with_wait")]
        rows.append(f"| {key} | {' | '.join(shown)} |")
    return rows


def table(parts):
    """What goes into README.md: the machine, what was checked, the cases."""
    lines = [REHEARSAL, ""] if is_rehearsal(parts) else []
    lines += machine_lines(parts) + suite_lines(parts)
    if part := parts.get("bench"):
        lines += ceilings_text(part) + bench_rows(part)
    return "\n".join(lines).rstrip() + "\n"


def report(parts):
    """Everything."""
    try:
        text = table(parts)
    except Refused as reason:
        return f"No report: {reason}\n"
    if part := parts.get("latency"):
        text += "\nLatency of a GOAL step, inputs in L2:\n\n" + "\n".join(latency_rows(part)) + "\n"
    return text


def between_markers(document, text):
    """The document with `text` between its markers; what was there before is replaced."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise Refused(f"the document has not one pair of {BEGIN} and {END}")
    head, rest = document.split(BEGIN)
    return f"{head}{BEGIN}\n{text.strip()}\n{END}{rest.split(END)[1]}"


def into_files(parts, root):
    """Renders into the two documents, or says why not. The exit code."""
    try:
        whole, short = report(parts), table(parts)
        if is_rehearsal(parts):
            print(whole)
            raise Refused("these are figures of a rehearsal; they are printed above and written nowhere")
        wanted = {pathlib.Path(root) / "README.md": short, pathlib.Path(root) / "docs" / "benchmarks.md": whole}
        for path in wanted:
            if not path.exists():
                raise Refused(f"there is no {path}: --render belongs into the repository")
        # All or none: both are read before one is written.
        documents = {path: between_markers(path.read_text(), text) for path, text in wanted.items()}
    except Refused as reason:
        print(f"gpu-report: not rendered: {reason}", file=sys.stderr)
        return 1
    for path, text in documents.items():
        store.write_atomically(path, text)
        print(f"{path} is written")
    return 0
