"""From a seed to a notebook over the whole of the language, the same for ever: no clock, no addresses, no network.

A notebook is a list of cells. Each is made of pieces (pieces_*.py), a light model of the namespace (names.py) keeps
most of them meaningful, and every few cells show many names at once, so that any wrong value is seen."""

import ast
import os
from random import Random

import pieces_code  # noqa: F401 - fills the register
import pieces_odd  # noqa: F401
import pieces_values  # noqa: F401
from names import Names, digest, shown
from pieces import PIECES
from play import Cell

# What notebooks are made of. Off is what Cellferry is known not to do yet, or says in docs/values.md that it does not.
FEATURES = {piece.feature: True for piece in PIECES} | {
    "blocks": True,
    "change of a result": True,
    "class decorators": True,
    "class state": True,
    "classes defined again": True,
    "contexts": True,
    "definitions in blocks": True,
    "global deletion": True,
    "kept own errors": True,
    "local classes": True,
    "named tuples": True,
    "results": True,
    "same cell again": True,
    "shared names bound again": True,
    "single dispatch": True,
    "type variables": True,
    # Differences that docs/values.md tells.
    "cache counts": False,  # `cache_info()` of `lru_cache`: the cache is not carried
    "inputs elsewhere": False,  # `In` in a worker elsewhere holds only that worker's cells
}

TARGETS = ("left", "right", "home")
CELLS = 12, 20


def features():
    """FEATURES, changed by `CELLFERRY_ELISION_FEATURES`: `all`, or names with `-` or `+` before them."""
    chosen = dict(FEATURES)
    for word in filter(None, os.environ.get("CELLFERRY_ELISION_FEATURES", "").split(",")):
        word = word.strip()
        if word == "all":
            chosen = dict.fromkeys(chosen, True)
        elif word == "none":
            chosen = dict.fromkeys(chosen, False)
        elif word[1:] in chosen and word[0] in "+-":
            chosen[word[1:]] = word[0] == "+"
        else:
            raise ValueError(f"no feature {word!r}: {sorted(chosen)}")
    return chosen


def notebook(seed, chosen=None):
    """The cells of the notebook that `seed` stands for."""
    random = Random(seed)
    names = Names(random, chosen or features())
    # Each notebook dwells on a few features: faults lie where pieces of one kind meet.
    able = [piece for piece in PIECES if names.features[piece.feature]]
    groups = sorted({piece.feature for piece in able})
    favoured = set(random.sample(groups, min(len(groups), random.randint(4, 9))))
    weights = {piece: piece.weight * (6 if piece.feature in favoured else 1) for piece in able}
    cells = []
    for number in range(1, random.randint(*CELLS) + 1):
        names.cell = number
        names.target = random.choice(TARGETS[:2]) if random.random() < 0.5 else random.choice((None, None, "home"))
        again = cells and "_i" not in cells[-1].source and "In" not in cells[-1].source
        if again and names.features["same cell again"] and random.random() < 0.04:
            source, tolerated = cells[-1].source, True
        else:
            source, tolerated = _source(names, weights)
        if _has_result(source):
            names.results.append(number)
        cells.append(Cell(source, names.target, tolerated))
    return cells


def _source(names, weights):
    """One cell, and whether its error may be passed over."""
    raising = names.chance(0.1)
    chunks = [] if raising or names.cell > 1 else ["import numpy as np"]
    wanted = names.number(1, 3) if names.cell > 2 else 4
    chosen = [piece for piece in weights if not piece.raises and not piece.whole]
    for _ in range(wanted):
        if chosen:
            chunks.append(_piece(names, chosen, weights))
    if raising and any(piece.raises for piece in weights):
        last = _drawn(names, [piece for piece in weights if piece.raises], weights)
        if last.whole:
            return last.write(names), True
        chunks.append(last.write(names))
        return _joined(chunks), names.chance(0.8)
    whole = [piece for piece in weights if piece.whole and not piece.raises]
    if whole and names.chance(0.04):
        return _drawn(names, whole, weights).write(names), names.chance(0.5)
    ending = names.random.random()
    if ending < 0.3:
        chunks.append(digest(names))
    elif ending < 0.55:
        chunks.append(_last(names))
    return _joined(chunks) or "print('empty')", names.chance(0.7)


def _last(names):
    """An expression whose value is the cell's result."""
    able = [name for name in sorted(names.kinds) if shown(names, name)]
    return f"{shown(names, names.random.choice(able))}" if able else "0"


def _drawn(names, able, weights):
    return names.random.choices(able, [weights[piece] for piece in able])[0]


def _piece(names, able, weights):
    """Lines of one piece, at times inside a block."""
    for _ in range(20):
        drawn = _drawn(names, able, weights)
        before = dict(names.kinds), dict(names.facts)
        lines = drawn.write(names)
        if not lines:
            names.kinds, names.facts = before
            continue
        if drawn.first:
            lines = f"{drawn.first}\n{lines}"
        return _in_block(names, lines)
    return None


def _in_block(names, lines):
    plain = not any(word in lines for word in ("%", "!", "global ", "import *", "await ", "del "))
    if not names.on("definitions in blocks"):
        plain = plain and not any(line.startswith(("class ", "@")) for line in lines.splitlines())
    if not names.on("blocks") or not plain or not names.chance(0.12):
        return lines
    inside = "\n".join("    " + line for line in lines.splitlines())
    return names.choose(
        f"for turn in range({names.number(1, 2)}):\n{inside}",
        f"if {names.some('int') or 1} is not None:\n{inside}",
        f"try:\n{inside}\nexcept TypeError as e:\n    print('type', e)\nelse:\n    print('else')",
        f"import contextlib\nwith contextlib.suppress(KeyError):\n{inside}",
        f"while True:\n{inside}\n    break",
    )


def _joined(chunks):
    return "\n".join(chunk for chunk in chunks if chunk)


def _has_result(source):
    """Whether the last statement is an expression that probably has a value."""
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return False
    call = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    silent = call and getattr(last.value.func, "id", "") in ("print", "exec", "display")
    return isinstance(last, ast.Expr) and not silent


def written(cells):
    """The notebook as text that a person reads, and can run."""
    texts = []
    for number, cell in enumerate(cells, 1):
        lines = [f"# --- cell {number}" + (", may raise" if cell.tolerated else "")]
        if cell.target:
            lines.append(f"#| target: {cell.target}")
        texts.append("\n".join([*lines, cell.source]))
    return "\n".join(texts)


if __name__ == "__main__":
    import sys

    print(written(notebook(int(sys.argv[1]))))
