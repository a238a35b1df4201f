"""What a bundle is: programs without the kernels that each of them embeds, the kernels once, and a manifest.

Every test binary carries the same images of all kernels, forty megabytes of them. A bundle holds each image once; a program is stored
as the pieces between its images, and put together again when it is run. Its hash tells whether that went right.
"""

import contextlib
import hashlib
import json
import lzma
import os
import pathlib
import re
import tempfile

MANIFEST = "manifest.json"
LIMIT_BYTES = 60_000_000


def digest(data):
    return hashlib.sha256(data).hexdigest()


def hollow(program, images):
    """The program without the images in it: the places (offset in the program, image), ascending, and the rest."""
    places = []
    for name, image in images.items():
        at = program.find(image) if image else -1
        while at >= 0:
            places.append((at, name))
            at = program.find(image, at + len(image))
    rest, end, kept = [], 0, []
    for at, name in sorted(places):
        # An image that lies inside another one is part of it.
        if at >= end:
            rest.append(program[end:at])
            kept.append([at, name])
            end = at + len(images[name])
    rest.append(program[end:])
    return kept, b"".join(rest)


def fill(places, rest, images):
    """The inverse of `hollow`."""
    program, taken, length = [], 0, 0
    for at, name in places:
        piece = rest[taken : taken + at - length]
        program += [piece, images[name]]
        taken += len(piece)
        length = at + len(images[name])
    return b"".join(program) + rest[taken:]


def newest_glibc(program):
    """The newest glibc that a program's symbols ask for, such as (2, 34)."""
    return max((tuple(int(part) for part in found) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", program)), default=(0, 0))


# Names of what tests read from the place where they were compiled, which a bundle has not.
PLACES = re.compile(r'env!\("(CARGO_MANIFEST_DIR|CARGO_TARGET_TMPDIR|CARGO_BIN_EXE_\w+|CARGO|OUT_DIR)"')
# Marks of a test that runs on CUDA: those of tests/gpu_presence.rs, and of files that open a device themselves.
MARKS = ("on_every_backend(", "common::cuda()", "device()", "cuda_with_nvrtc()", "ready()", "Cuda::new(", '#![cfg(feature = "cuda")]')


def why_left_out(name, sources):
    """Why a test binary is not for the card, or None. `sources` are the texts of its own files."""
    places = sorted({place for text in sources for place in PLACES.findall(text)})
    if places:
        return f"needs the tree that it was compiled in ({', '.join(places)})"
    if not name.startswith("cuda_") and not any(mark in text for text in sources for mark in MARKS):
        return "has no test that runs on CUDA"
    return None


class Bundle:
    """An unpacked bundle."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.manifest = json.loads((self.root / MANIFEST).read_text())
        self.images = None

    def _image(self):
        if self.images is None:
            read = lambda name: lzma.decompress((self.root / "images" / f"{name}.xz").read_bytes())
            self.images = {name: read(name) for name in self.manifest["images"]}
        return self.images

    def program(self, name):
        """Its bytes."""
        about = self.manifest["programs"][name]
        rest = lzma.decompress((self.root / "programs" / f"{name}.xz").read_bytes())
        program = fill(about["places"], rest, self._image())
        if digest(program) != about["sha256"]:
            raise RuntimeError(f"{name} of the bundle in {self.root} is damaged: its hash differs")
        return program

    @contextlib.contextmanager
    def unpacked(self, name):
        """The program as a file, as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="simgrad-") as folder:
            path = pathlib.Path(folder) / self.manifest["programs"][name]["file"]
            path.write_bytes(self.program(name))
            os.chmod(path, 0o755)
            yield path
