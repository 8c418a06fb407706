"""Generated cells, played: what CPython really takes from and puts into the notebook namespace.

`played.py SEED COUNT` prints JSON lines {"source", "reads", "writes"}. The names of the notebook stand in
the builtins of the cell's namespace, so that whatever the cell has not bound itself by then is asked for
there. Their values answer to everything, and choose at random which way a branch goes, how often a loop
runs, what raises, and which of the functions handed to them they call.
"""

import ast
import builtins
import json
import random
import signal
import sys
import warnings

NAMES = ["a", "b", "c", "d", "f", "g", "h", "len", "__p"]
# 3.12 knows type parameters, but at first mangled private names after a generic class.
NEW = sys.version_info >= (3, 13)
FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
STEPS = 400


class Boom(Exception):
    pass


class Stop(BaseException):
    """The cell has run for long enough."""


def stop(*_):
    if Value.playing:
        raise Stop


class Value:
    """Answers to everything."""

    steps = 0
    playing = False
    rng = random.Random()
    __match_args__ = ("m", "n")

    def chance(self, of=0.5):
        Value.steps += 1
        if Value.steps > STEPS:
            raise Stop
        return Value.rng.random() < of

    def __call__(self, *args, **kwargs):
        for each in [*args, *kwargs.values()]:
            if not isinstance(each, Value) and callable(each) and self.chance():
                finish(each, Value())
        if self.chance(0.08):
            raise Boom
        first = args[0] if args else None
        return first if callable(first) and self.chance() else Value()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Value()

    def __bool__(self):
        return self.chance()

    def __iter__(self):
        return iter([Value() for _ in range(2) if self.chance(0.7)])

    async def __aiter__(self):
        for each in self:
            yield each

    def __await__(self):
        return self()
        yield

    def __enter__(self):
        return (Value(), Value())

    def __exit__(self, *error):
        return self.chance()

    async def __aenter__(self):
        return (Value(), Value())

    async def __aexit__(self, *error):
        return self.chance()

    def __getitem__(self, key):
        return Value()

    def __setitem__(self, key, value):
        pass

    def __delitem__(self, key):
        pass

    def __setattr__(self, name, value):
        pass

    def __delattr__(self, name):
        pass

    def __len__(self):
        return 2

    def __contains__(self, item):
        return self.chance()

    def __hash__(self):
        return 0

    def keys(self):
        return ["k"]

    def __mro_entries__(self, bases):
        return ()

    def operate(self, *_):
        return Value()

    __add__ = __radd__ = __or__ = __ror__ = __lt__ = __gt__ = __eq__ = operate


def finish(function, *args):
    """Calls a function, and runs what it gives."""
    for given in (args, (), (*args, Value())):
        try:
            result = function(*given)
            break
        except TypeError:
            continue
    else:
        return
    if hasattr(result, "send"):
        try:
            while True:
                result.send(None)
        except StopIteration:
            pass
    elif hasattr(result, "__anext__"):
        finish(result.__anext__)


# --- making cells -----------------------------------------------------------------------------------


class Maker:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        # Whether `return`, `await`, `break` may stand here.
        self.functions, self.asynchronous, self.loops = 0, True, 0

    def name(self):
        return self.rng.choice(NAMES)

    def pick(self, *choices):
        return self.rng.choice(choices)()

    def several(self, make, least=1, most=3):
        return [make() for _ in range(self.rng.randint(least, most))]

    def expression(self, depth=2):
        if depth <= 0 or self.rng.random() < 0.25:
            return self.name()
        e = lambda: self.expression(depth - 1)
        return self.pick(
            self.name,
            lambda: f"({e()} + {e()})",
            lambda: f"{self.name()}({', '.join(self.several(e, 0, 2))})",
            lambda: f"{self.name()}({self.name()})",
            lambda: f"{self.name()}(*{e()}, k={e()})",
            lambda: f"{self.name()}.m({e()})",
            lambda: f"({e()} < {e()} < {e()})",
            lambda: f"({e()} and {e()} or {e()})",
            lambda: f"({e()} if {e()} else {e()})",
            lambda: f"(lambda {self.name()}, q={e()}: {e()})",
            lambda: f"(lambda: {e()})",
            lambda: f"({self.name()} := {e()})",
            lambda: f"{self.name()}[{e()}:{e()}]",
            lambda: f"f'{{{e()}!r:{{{self.name()}}}}}'".replace('""', "") if depth < 2 else e(),
            lambda: f"[{e()}, *{e()}]",
            lambda: f"{{**{e()}, {e()}: {e()}}}",
            lambda: self.comprehension(depth - 1),
            lambda: f"(await {self.name()})" if self.asynchronous else self.name(),
        )

    def comprehension(self, depth):
        e = lambda: self.expression(depth)
        clause = f"for {self.name()} in {e()}"
        if self.rng.random() < 0.4:
            clause += f" if {e()}"
        if self.rng.random() < 0.3:
            clause += f" for {self.name()}, *{self.name()} in {e()}"
        return self.rng.choice(["[{0} {1}]", "{{{0} {1}}}", "{{{0}: {0} {1}}}", "list({0} {1})"]).format(e(), clause)

    def target(self):
        return self.pick(
            self.name,
            self.name,
            self.name,
            lambda: f"({self.name()}, *{self.name()})",
            lambda: f"{self.name()}.q",
            lambda: f"{self.name()}[{self.expression(1)}]",
        )

    def block(self, depth):
        statements = [line for _ in range(self.rng.randint(1, 3)) for line in self.statement(depth)]
        return ["    " + line for line in statements]

    def statement(self, depth):
        e = self.expression
        simple = [
            lambda: [f"{self.target()} = {e()}"],
            lambda: [f"{self.target()} = {self.target()} = {e()}"],
            lambda: [f"{self.name()} = {self.name()}"],
            lambda: [f"{self.name()} += {e()}"],
            lambda: [f"{self.name()}.q += {e()}"],
            lambda: [f"{self.name()}: {e(1)} = {e()}"],
            lambda: [f"{self.name()}: {e(0)}"],
            lambda: [f"del {self.name()}"],
            lambda: [f"del {self.name()}[{e(1)}], {self.name()}.q"],
            lambda: [f"{self.name()}({self.name()})"],
            lambda: [f"{self.name()}()"],
            lambda: [e()],
            lambda: [f"import sys as {self.name()}"],
            lambda: [f"from os import path as {self.name()}"],
            lambda: [f"assert {e(1)}, {e(1)}"],
            lambda: ["break"] if self.loops else [e()],
            lambda: ["continue"] if self.loops else [e()],
            lambda: [f"return {e()}"] if self.functions else [e()],
        ]
        if depth <= 0 or self.rng.random() < 0.35:
            return self.rng.choice(simple)()
        compound = [self.if_, self.while_, self.for_, self.try_, self.with_, self.match_, self.def_, self.def_]
        compound += [self.class_] + [self.alias] * NEW
        return self.rng.choice(compound)(depth - 1)

    def inside(self, depth, functions=0, asynchronous=False, head=()):
        """The body of something that has its own `return`, `await` and loops."""
        kept = self.functions, self.asynchronous, self.loops
        self.functions, self.asynchronous, self.loops = functions, asynchronous, 0
        body = ["    " + line for line in head] + self.block(depth)
        self.functions, self.asynchronous, self.loops = kept
        return body

    def loop(self, depth):
        self.loops += 1
        body = self.block(depth)
        self.loops -= 1
        return body

    def maybe(self, make, of=0.4):
        return make() if self.rng.random() < of else []

    def foreign(self):
        word = "nonlocal" if self.functions and self.rng.random() < 0.3 else "global"
        return [f"{word} {self.name()}"]

    def awaited(self):
        return "async " if self.asynchronous and self.rng.random() < 0.2 else ""

    def if_(self, depth):
        return [
            f"if {self.expression()}:", *self.block(depth),
            *self.maybe(lambda: [f"elif {self.expression()}:", *self.block(depth)]),
            *self.maybe(lambda: ["else:", *self.block(depth)], 0.6),
        ]  # fmt: skip

    def while_(self, depth):
        return [
            f"while {self.expression()}:", *self.loop(depth),
            *self.maybe(lambda: ["else:", *self.block(depth)]),
        ]  # fmt: skip

    def for_(self, depth):
        return [
            f"{self.awaited()}for {self.target()} in {self.name()}:", *self.loop(depth),
            *self.maybe(lambda: ["else:", *self.block(depth)]),
        ]  # fmt: skip

    def try_(self, depth):
        end = lambda: ["finally:", *self.block(depth)]
        body = ["try:", *self.block(depth)]
        if self.rng.random() < 0.25:
            return body + end()
        kept, self.loops, functions, self.functions = self.loops, 0, self.functions, 0
        star = self.rng.choice(["", "*"])
        handler = [f"except{star} Exception{self.rng.choice(['', f' as {self.name()}'])}:", *self.block(depth)]
        self.loops, self.functions = kept, functions
        other = self.maybe(lambda: ["else:", *self.block(depth)])
        return body + handler + other + self.maybe(end)

    def with_(self, depth):
        target = self.rng.choice([self.name(), f"({self.name()}, {self.name()})", f"{self.name()}.q"])
        return [f"{self.awaited()}with {self.name()} as {target}, {self.name()}:", *self.block(depth)]

    def match_(self, depth):
        n = self.name
        patterns = [
            f"[{n()}, *{n()}]", f"{{'k': {n()}, **{n()}}}", f"({n()}.m as {n()})", f"[1] as {n()}", "Exception()",
            f"{n()} if {self.expression(1)}",
        ]  # fmt: skip
        chosen = [self.rng.choice(patterns), self.rng.choice([*patterns, n(), "_"])]
        return [
            f"match {self.expression()}:",
            *["    " + line for pattern in chosen for line in (f"case {pattern}:", *self.block(depth))],
        ]

    def def_(self, depth):
        generic = f"[{self.rng.choice(NAMES[:-1])}: {self.name()}]" if NEW and self.rng.random() < 0.2 else ""
        parameters = f"{self.name()}={self.expression(1)}, *q"
        if self.rng.random() < 0.3:
            parameters += f", r: {self.name()} = {self.name()}"
        asynchronous = self.rng.random() < 0.2
        head = self.maybe(self.foreign, 0.5)
        name = self.name()
        return [
            *self.maybe(lambda: [f"@{self.expression(0)}"], 0.2),
            f"{'async ' * asynchronous}def {name}{generic}({self.rng.choice(['', '', parameters])}):",
            *self.inside(depth, 1, asynchronous, head),
            *self.maybe(lambda: [f"{name}()"], 0.5),
        ]

    def class_(self, depth):
        head = self.maybe(self.foreign, 0.3)
        generic = f"[{self.rng.choice(NAMES[:-1])}]" if NEW and self.rng.random() < 0.2 else ""
        bases = self.rng.choice(["", "", f"({self.name()})"])
        return [f"class {self.name()}{generic}{bases}:", *self.inside(depth, head=head)]

    def alias(self, _):
        name = self.name()
        return [f"type {name}[{self.rng.choice(NAMES[:-1])}] = {self.expression(1)}", *self.maybe(lambda: [f"{name}.__value__"])]

    def cell(self):
        return "\n".join(line for _ in range(self.rng.randint(2, 6)) for line in self.statement(3)) + "\n"


# --- playing them -----------------------------------------------------------------------------------


class Notebook(dict):
    """The names that stood before the cell, and Python's own."""

    def __init__(self):
        super().__init__(vars(builtins))
        self.reads = set()
        self.update({name: Value() for name in NAMES})
        self.update({f"_{name}__p": Value() for name in NAMES})

    def __getitem__(self, name):
        if not name.startswith("__") or name == "__p":
            self.reads.add(name)
        return super().__getitem__(name)


class Cell(dict):
    """The namespace of the cell: what it binds."""

    def __init__(self, notebook):
        super().__init__(__builtins__=notebook, __name__="cell")
        self.writes = set()

    def __setitem__(self, name, value):
        self.writes.add(name)
        super().__setitem__(name, value)


def play(code, seed):
    Value.rng, Value.steps, Value.playing = random.Random(seed), 0, True
    notebook = Notebook()
    cell = Cell(notebook)
    # A loop whose condition is always true asks no value.
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
    try:
        running = eval(code, cell)
        while running is not None:
            running.send(None)
    except (Exception, Stop):
        pass
    finally:
        Value.playing = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    # What a function binds does not go through `__setitem__`.
    return notebook.reads, {name for name in cell.writes | set(cell) if not name.startswith("__") or name == "__p"}


def main():
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    signal.signal(signal.SIGALRM, stop)
    first, count = map(int, sys.argv[1:3])
    for seed in range(first, first + count):
        source = Maker(seed).cell()
        try:
            code = compile(source, "cell", "exec", flags=FLAGS, dont_inherit=True)
        except SyntaxError:
            continue
        reads, writes = set(), set()
        for again in range(8):
            played = play(code, again)
            reads |= played[0]
            writes |= played[1]
        print(json.dumps({"source": source, "reads": sorted(reads), "writes": sorted(writes)}))


if __name__ == "__main__":
    main()
