"""From a notebook that two kernels disagree on to the smallest one that shows the same difference. Every step runs
both kernels, so big guesses come first (what the differing cell can have read), and there is a limit in seconds."""

import ast
import re
import time
from dataclasses import replace

from generate import written

WORD = re.compile(r"\b[A-Za-z_]\w*")
SHOWS = re.compile(r"\s*(print\(|display\(|%who|!echo)")


def shrink(cells, check, found, seconds=300):
    """The smallest cells found for which `check(cells)` still gives a difference like `found`, and that difference."""
    deadline = time.monotonic() + seconds
    tried = set()

    def smaller(candidate):
        nonlocal cells, found
        if not candidate or tuple(candidate) in tried or time.monotonic() > deadline:
            return False
        tried.add(tuple(candidate))
        got = check(candidate)
        if got is None or got.signature() != found.signature():
            return False
        cells, found = candidate[: got.index + 1], got
        return True

    cells = cells[: found.index + 1]
    for statement in reversed(_statements(cells[-1].source)):
        ending = [*cells[:-1], replace(cells[-1], source=statement)]
        if smaller(_read_by_last(ending)) or smaller(ending):
            break
    else:
        smaller(_read_by_last(cells))
    _drop(lambda: cells, smaller)
    for number in reversed(range(len(cells))):
        for parts in (_statements, str.splitlines):
            at = 0
            while number < len(cells) and at < len(parts(cells[number].source)):
                if not smaller(_without(cells, number, at, parts)):
                    at += 1
    for number, cell in enumerate(cells):
        if cell.target not in (None, "home") and not smaller(_changed(cells, number, target=None)):
            smaller(_changed(cells, number, target="left"))
    return cells, found


def _drop(cells, smaller):
    """Drops cells, half of them at once, then fewer."""
    size = max(1, len(cells()) // 2)
    while size:
        at = len(cells()) - 1
        while at > 0:
            at = max(0, min(at, len(cells()) - 1) - size)
            smaller(cells()[:at] + cells()[at + size :])
        size //= 2


def _read_by_last(cells):
    """The statements whose names the last cell can have read, through any number of statements."""
    words = set(WORD.findall(cells[-1].source))
    kept = [cells[-1]]
    for cell in reversed(cells[:-1]):
        lines = []
        for statement in reversed(_statements(cell.source)):
            if not SHOWS.match(statement) and words & set(WORD.findall(statement)):
                words |= set(WORD.findall(statement))
                lines.insert(0, statement)
        if lines:
            kept.insert(0, replace(cell, source="\n".join(lines)))
    return kept


def _statements(source):
    """The top-level statements, decorators included; the lines, where it is not plain Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return source.splitlines()
    lines = source.splitlines()
    starts = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1 for node in body]
    ends = [*starts[1:], len(lines)]
    return ["\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)]


def _changed(cells, number, **fields):
    return [*cells[:number], replace(cells[number], **fields), *cells[number + 1 :]]


def _without(cells, number, at, parts):
    """The cells without one part of one of them, and without the block that it opens."""
    found = parts(cells[number].source)
    end = at + 1
    while end < len(found) and _depth(found[end]) > _depth(found[at]):
        end += 1
    rest = "\n".join(found[:at] + found[end:])
    return _changed(cells, number, source=rest) if rest.strip() else cells[:number] + cells[number + 1 :]


def _depth(line):
    return len(line) - len(line.lstrip())


def told(cells, found, seed=None, way=None):
    """A difference as a person reads it: the notebook, what was expected and what came."""
    parts = [
        f"    {key}: expected {wanted!r}\n    {' ' * len(key)}  got      {got!r}"
        for key, (wanted, got) in found.parts().items()
    ]
    head = "differs from plain ipykernel" + (f": seed {seed}" if seed is not None else "") + (f", {way}" if way else "")
    return "\n".join([head, "", written(cells), "", f"cell {found.index + 1}:", *parts])
