"""Results on disk: one JSON file per part, written after every cell, so that a run that is cut off goes on where it was."""

import json
import os
import pathlib
import tempfile

VERSION = 1


def write_atomically(path, text):
    """Replaces `path` at once: a reader sees the old or the new text, never half of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class Part:
    """The results of one part. `identity` says what they belong to: results of another bundle, device or mode are not added to."""

    def __init__(self, folder, name, identity):
        self.path = pathlib.Path(folder) / f"{name}.json"
        self.data = {"version": VERSION, "part": name, "identity": identity, "complete": False, "cells": {}}

    def resume(self):
        """Takes what a former run left, if it has the same identity. Returns why not, or None."""
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return "no earlier results"
        except ValueError as error:
            return f"{self.path.name} is not JSON ({error})"
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return f"{self.path.name} is of another version"
        if found.get("identity") != self.data["identity"]:
            return f"{self.path.name} belongs to another run: {found.get('identity')}"
        self.data = found
        return None

    @property
    def complete(self):
        return self.data["complete"]

    def missing(self, names):
        """Those of `names` that have no result yet. One that was cut off has none."""
        return [name for name in names if name not in self.data["cells"]]

    def put(self, name, result):
        self.data["cells"][name] = result
        self.save()

    def finish(self, names):
        self.data["complete"] = not self.missing(names)
        self.save()

    def save(self):
        write_atomically(self.path, json.dumps(self.data, indent=1) + "\n")


def load(folder, names):
    """The parts that are there, by name."""
    parts = {}
    for name in names:
        path = pathlib.Path(folder) / f"{name}.json"
        if path.exists():
            parts[name] = json.loads(path.read_text())
    return parts
