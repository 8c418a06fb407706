"""What CPython itself makes of a source: the judge of the analysis in the differential test.

Reads JSON lines {"source": ...} and answers each with the names that the compiled bytecode takes
from, binds in and deletes from the module namespace, or {"skip": why}. `--corpus N` prints
sources instead: files of the standard library, whole and cut into cells. Standard library only;
the bytecode is read by control flow, so that "read before bound" is exact on every path.
"""

import ast
import dis
import inspect
import io
import json
import os
import re
import sys
import symtable
import sysconfig
import types
import warnings

FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<generic parameters of ")
# Names that the compiler adds to a class body or module on its own account.
IMPLICIT = {
    "__doc__",
    "__annotations__", "__name__", "__module__", "__qualname__", "__classdict__",
    "__conditional_annotations__", "__static_attributes__", "__firstlineno__",
    "__classdictcell__", "__type_params__", "__annotate__", "__annotate_func__",
}
ENDS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
JUMPS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE", "JUMP"}
LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}


class Later:
    """What happens when functions of the source are called."""

    def __init__(self):
        self.reads, self.writes, self.deletes = set(), set(), set()


class Run:
    """Follows the code that runs at once, over all paths."""

    def __init__(self):
        self.reads, self.unbound_reads = set(), set()
        self.writes, self.deletes = set(), set()
        self.functions = {}

    def follow(self, code, bound, is_class=False):
        """The names bound at the end on every path and the names surely read unbound there."""
        instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
        place = {i.offset: n for n, i in enumerate(instructions)}
        guards = []
        if sys.version_info >= (3, 11):
            for entry in dis._parse_exception_table(code):
                guards.append((entry.start, entry.end, place[entry.target]))
        is_module = not is_class and not code.co_flags & inspect.CO_OPTIMIZED
        states, end = {0: bound}, None
        todo = [0]

        def flow(target, state):
            if target >= len(instructions):
                return
            old = states.get(target)
            new = state if old is None else (old[0] & state[0], old[1] & state[1], old[2] & state[2])
            if new != old:
                states[target] = new
                todo.append(target)

        while todo:
            at = todo.pop()
            state = states[at]
            instruction = instructions[at]
            name, op = instruction.argval, instruction.opname
            for start, stop, handler in guards:
                if start <= instruction.offset < stop:
                    flow(handler, state)
            have, read, local = state
            if op in LOADS:
                if op == "LOAD_NAME" and (name in local or names_module(instructions, at)):
                    pass
                else:
                    self.reads.add(name)
                    if name not in have:
                        self.unbound_reads.add(name)
                        read = read | {name}
            elif op == "STORE_GLOBAL" or (op == "STORE_NAME" and is_module):
                self.writes.add(name)
                have = have | {name}
            elif op == "DELETE_GLOBAL" or (op == "DELETE_NAME" and is_module):
                self.deletes.add(name)
                if name not in have:
                    self.unbound_reads.add(name)
                have = have - {name}
            elif op == "STORE_NAME":
                local = local | {name}
            elif op == "DELETE_NAME":
                local = local - {name}
            elif isinstance(instruction.argval, types.CodeType):
                inner = instruction.argval
                kind = None
                if not inner.co_flags & inspect.CO_OPTIMIZED:
                    kind = "class"
                elif inner.co_name.startswith(INLINE):
                    kind = "inline"
                if kind:
                    after = self.follow(inner, (have, read, frozenset()), kind == "class")
                    if after and inner.co_name != "<genexpr>":
                        have, read = after[0], after[1]
                else:
                    later = self.functions.setdefault(inner, Later())
                    called(inner, later)
            state = (have, read, local)
            if op in ENDS:
                if op.startswith("RETURN"):
                    end = state if end is None else tuple(a & b for a, b in zip(end, state))
                continue
            if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
                flow(place[instruction.argval], state)
                if op in JUMPS:
                    continue
            flow(at + 1, state)
        return end


def names_module(instructions, at):
    """Whether this is the compiler's own `__module__ = __name__` at the head of a class body."""
    after = instructions[at + 1] if at + 1 < len(instructions) else None
    return (
        instructions[at].argval == "__name__"
        and after is not None
        and (after.opname, after.argval) == ("STORE_NAME", "__module__")
    )


def called(code, later):
    """Collects what a code object and those inside it do to the module namespace."""
    optimized = code.co_flags & inspect.CO_OPTIMIZED
    bound_here = set()
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    for at, instruction in enumerate(instructions):
        name, op = instruction.argval, instruction.opname
        if op in ("LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"):
            later.reads.add(name)
        elif op == "LOAD_NAME" and not optimized and name not in bound_here:
            if not names_module(instructions, at):
                later.reads.add(name)
        elif op == "STORE_NAME":
            bound_here.add(name)
        elif op == "STORE_GLOBAL":
            later.writes.add(name)
        elif op == "DELETE_GLOBAL":
            later.deletes.add(name)
        elif isinstance(instruction.argval, types.CodeType):
            called(instruction.argval, later)


def merged(run):
    later = Later()
    for each in run.functions.values():
        later.reads |= each.reads
        later.writes |= each.writes
        later.deletes |= each.deletes
    return later


def judge(source):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
            code = compile(source, "cell", "exec", flags=FLAGS, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"skip": type(error).__name__}
    written = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    drop = IMPLICIT - written
    run = Run()
    end = run.follow(code, (frozenset(), frozenset(), frozenset()))
    later = merged(run)
    answer = {
        "reads_now": run.unbound_reads,
        "touched_now": run.reads,
        "writes": run.writes | (bound_by_table(source) - run.deletes),
        "deletes": run.deletes,
        "reads_later": later.reads,
        "changes_later": later.writes | later.deletes,
        # On a path that ends; none if every path raises.
        "surely": None if end is None else end[1],
    }
    answer = {k: v if v is None else sorted(v - drop) for k, v in answer.items()}
    answer["definitions"] = definitions(tree)
    return answer


def bound_by_table(source):
    """Names bound at module level as the symbol table has them: also in code never compiled.

    The table counts `del x` as an assignment, too.
    """
    try:
        table = symtable.symtable(source, "cell", "exec")
    except SyntaxError:  # a top-level await
        return set()
    # Since 3.12 the variables of comprehensions stand in the table of what surrounds them.
    nodes = ast.walk(ast.parse(source))
    inner = [part for node in nodes if isinstance(node, ast.comprehension) for part in ast.walk(node.target)]
    inner = {part.id for part in inner if isinstance(part, ast.Name)} if sys.version_info >= (3, 12) else set()
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if (symbol.is_assigned() and not symbol.is_annotated()) or symbol.is_imported()
    } - {"*"} - inner


def definitions(tree):
    """What each top-level `def` and `class` needs, compiled by itself."""
    future = [
        node for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    found = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        module = ast.Module(body=[*future, node], type_ignores=[])
        run = Run()
        run.follow(
            compile(module, "cell", "exec", flags=FLAGS, dont_inherit=True),
            (frozenset(), frozenset(), frozenset()),
        )
        later = merged(run)
        drop = IMPLICIT - {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        found.append({
            "name": node.name,
            "line": min([node.lineno, *(d.lineno for d in node.decorator_list)]),
            "now": sorted(run.unbound_reads - drop),
            # Its own name is bound by then.
            "later": sorted(later.reads - drop - {node.name}),
            "changes_later": sorted((later.writes | later.deletes) - drop),
        })
    return found


def corpus(count):
    """`count` files of the standard library, spread over all of it, whole and as cells."""
    root = sysconfig.get_path("stdlib")
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in ("site-packages", "dist-packages", "__pycache__"))
        files += [os.path.join(folder, n) for n in sorted(names) if n.endswith(".py")]
    step = max(1, len(files) // count)
    for path in files[::step][:count]:
        try:
            with io.open(path, encoding="utf-8", newline="") as file:
                source = file.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
            continue
        label = os.path.relpath(path, root)
        yield {"label": label, "source": source}
        lines = re.split("(?<=\n)", source)
        for start in range(0, len(tree.body), 4):
            group = tree.body[start:start + 4]
            first = min([group[0].lineno, *(d.lineno for d in getattr(group[0], "decorator_list", []))])
            last = group[-1].end_lineno
            yield {"label": f"{label}:{first}", "source": "".join(lines[first - 1:last])}


def main():
    if sys.argv[1:2] == ["--corpus"]:
        items = corpus(int(sys.argv[2]))
    else:
        items = map(json.loads, sys.stdin)
    for item in items:
        print(json.dumps({**item, "verdict": judge(item["source"])}))


if __name__ == "__main__":
    sys.setrecursionlimit(20000)
    main()
