"""Pieces about values: what is bound, shared and changed in place."""

from pieces import piece

IMPORT_NUMPY = "import numpy as np"
IMPORT_PANDAS = "import pandas as pd"


@piece("values", 2)
def numbers(names):
    old = names.some("int")
    new = names.new("int")
    return f"{new} = {old} * 2 % 101 + 1" if old and names.chance(0.5) else f"{new} = {names.number()}"


@piece("values", 2)
def new_list(names):
    return f"{names.new('list')} = {names.numbers()}"


@piece("values")
def text(names):
    old = names.some("int", "text")
    new = names.new("text")
    return f"{new} = f'<{{{old}}}>'[:12]" if old else f"{new} = '{names.choose('ab', 'ünï', 'x y', '')}'"


@piece("values")
def pair(names):
    old = names.some("list", "int", "text")
    return f"{names.new('pair')} = ({names.number()}, {old or 0!r})".replace("'", "")


@piece("values")
def nest(names):
    inner = names.some("list") or "[0]"
    return f"{names.new('nest')} = {{'k': {inner}, 'm': {{'n': {names.number()}, 'deep': [{inner}]}}}}"


@piece("values")
def new_set(names):
    return f"{names.new('set')} = set({names.numbers()})"


@piece("values")
def several(names):
    left, right = names.new("int"), names.new("int")
    return f"{left} = {right} = {names.number()}"


@piece("unpacking")
def star(names):
    source = names.some("list", "pair")
    first, rest = names.new("int"), names.new("list")
    return f"{first}, *{rest} = [{names.number()}, *{source}, 8]" if source and first != rest else None


@piece("unpacking")
def swap(names):
    both = names.two("list")
    return "{0}, {1} = {1}, {0}".format(*both) if both and names.on("shared names bound again") else None


@piece("aliases", 2)
def alias(names):
    old = names.some("list", "nest", "array", "matrix", "object", "frame", "deque", "set", "record", "groups", "box")
    return f"{names.new(names.kinds[old])} = {old}" if old else None


@piece("aliases", 2)
def alias_inside(names):
    outer, inner = names.some("nest"), names.some("list", "nest", "array", "object", "record")
    if not outer or not inner or outer == inner or names.kinds[inner] == "nest":
        return None
    key = names.choose("k", "new", "other")
    if names.kinds[inner] == "list":
        return f"{outer}['{key}'] = {inner}"
    return (f"{outer}['kept'] = [{inner}][0:0]\nholder = {{'in': {inner}, 'twice': [{inner}]}}\n"
        f"print(holder['in'] is {inner})")


@piece("aliases", 1.5)
def alias_out(names):
    outer = names.some("nest")
    return f"{names.new('list')} = {outer}['k']" if outer else None


@piece("aliases")
def same(names):
    both = names.two("list") or names.two("object") or names.two("nest")
    if not both:
        return None
    outer, inner = names.some("nest"), names.some("list")
    more = f", {outer}['k'] is {inner}" if outer and inner else ""
    return f"print({both[0]} is {both[1]}{more})"


@piece("aliases")
def object_in_list(names):
    inner, outer = names.some("object"), names.some("list")
    return f"{inner}.items = {outer}" if inner and outer else None


@piece("changes", 2)
def change_list(names):
    name = names.some("list")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}.append({number})",
        f"{name} += [{number}]",
        f"{name}[:1] = [{number}, {number}]",
        f"{name}.sort()",
        f"{name}.insert(0, {number})",
        f"del {name}[4:]",
        f"{name}.extend(v + 1 for v in {name}[:2])",
        f"{name} = {name} + [{number}]" if names.on("shared names bound again") else f"{name} *= 2\ndel {name}[5:]",
        f"{name} *= 1",
    )


@piece("changes", 1.5)
def change_nest(names):
    name = names.some("nest")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}['k'].append({number})",
        f"{name}['m']['n'] += {number}",
        f"{name}['m']['deep'][0].append({number})",
        f"{name}.setdefault('made', []).append({number})",
        f"{name} |= {{'u': {number}}}",
        f"{name}['m'].update(n={number})",
        f"for v in {name}['m']['deep']:\n    v[:1] = [{number}]",
    )


@piece("changes")
def change_set(names):
    name = names.some("set")
    return name and names.choose(f"{name}.add({names.number()})", f"{name} |= {{11}}", f"{name} = {name} ^ {{1, 2}}")


@piece("changes")
def change_number(names):
    name = names.some("int")
    return name and names.choose(f"{name} += {names.number()}", f"{name} = -{name}", f"{name} **= 1")


@piece("deletion")
def delete(names):
    shared = ("list", "array", "object", "pure") if names.on("shared names bound again") else ()
    name = names.some("int", "text", "pair", *shared)
    if not name or len(names.kinds) < 6:
        return None
    names.forget(name)
    return f"del {name}"


@piece("rebinding")
def other_kind(names):
    name = names.some("int", "text", "pure", *(("list", "array") if names.on("shared names bound again") else ()))
    if not name or len(names.kinds) < 8:
        return None
    names.bind(name, "int" if names.kinds[name] != "int" else "list")
    return f"{name} = 17" if names.kinds[name] == "int" else f"{name} = [1, 7]"


@piece("containers")
def containers(names):
    kind = names.choose("deque", "groups", "counts", "box")
    new, inner = names.new(kind), names.some("list") or "[1]"
    return {
        "deque": f"import collections\n{new} = collections.deque({names.numbers()}, maxlen=5)",
        "groups": f"from collections import defaultdict\n{new} = defaultdict(list)\n{new}['g'] = {inner}",
        "counts": f"from collections import Counter\n{new} = Counter('abca')",
        "box": f"import types\n{new} = types.SimpleNamespace(value={inner})",
    }[kind]


@piece("containers", 1.5)
def change_container(names):
    name = names.some("deque", "groups", "counts", "box")
    if not name:
        return None
    number = names.number()
    return {
        "deque": f"{name}.appendleft({number})",
        "groups": f"{name}[{number} % 2 and 'g' or 'h'].append({number})",
        "counts": f"{name}.update('b' * {number})",
        "box": f"{name}.value = list({name}.value) + [{number}]",
    }[names.kinds[name]]


@piece("numpy", 1.5, first=IMPORT_NUMPY)
def new_array(names):
    old = names.some("array")
    new = names.new("array", names.number(4, 8))
    size = names.facts[new]
    if old and names.chance(0.3):
        return f"{new} = {old} * 2 + 1"
    return f"{new} = np.arange({size}{names.choose('', ', dtype=float')})"


@piece("numpy", 2, first=IMPORT_NUMPY)
def view(names):
    old = names.some("array", "matrix")
    if not old:
        return None
    if names.kinds[old] == "matrix":
        form = names.choose("{0}[0]", "{0}[:, 1]", "{0}.ravel()", "{0}.T[0]", "{0}.reshape(-1)[2:]")
    else:
        form = names.choose("{0}[1:]", "{0}[::2]", "{0}[::-1]", "{0}[:3]", "{0}.view()", "{0}[:]")
    return f"{names.new('array', 2)} = {form.format(old)}"


@piece("numpy", first=IMPORT_NUMPY)
def matrix(names):
    old = names.some("array")
    new = names.new("matrix")
    if old and names.chance(0.3):
        return f"{new} = {old}.reshape(1, -1)"
    return f"{new} = np.arange(12).reshape(3, 4)"


@piece("numpy", 2.5)
def write_array(names):
    name = names.some("array", "matrix")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}[0] = {number}",
        f"{name}[-1] += {number}",
        f"{name} += 1",
        f"{name}[{name} > 5] = {number}",
        f"{name}.sort()",
        f"{name}.fill({number})",
        f"np.add({name}, 2, out={name})",
        f"{name}.flat[0] = {number}",
    )


@piece("numpy")
def shares(names):
    both = names.two("array")
    return both and "print(bool(np.shares_memory({0}, {1})), {0}.base is {1}, {0}.flags.owndata)".format(*both)


@piece("pandas", 1.5, first=IMPORT_PANDAS)
def frame(names):
    old = names.some("frame")
    new = names.new("frame")
    if old and names.chance(0.4):
        return f"{new} = {old}.assign(a={old}['a'] + 1)"
    return f"{new} = pd.DataFrame({{'a': {names.numbers(3, 3)}, 'b': list('pqr')}})"


@piece("pandas", 2, first=IMPORT_PANDAS)
def change_frame(names):
    name = names.some("frame")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}['c'] = {name}['a'] * {number}",
        f"{name}.loc[0, 'a'] = {number}",
        f"{name}.drop(columns='c', errors='ignore', inplace=True)",
        f"{name}.attrs['seen'] = {number}",
        f"print({name}.groupby('b')['a'].sum().to_dict(), {name}.attrs)",
        f"{name}.index = [5, 6, 7]",
    )


@piece("random objects")
def random_object(names):
    if names.chance(0.5):
        return f"{IMPORT_NUMPY}\n{names.new('rng')} = np.random.default_rng({names.number()})"
    return f"import random\n{names.new('dice')} = random.Random({names.number()})"


@piece("random objects")
def roll(names):
    name = names.some("rng", "dice")
    if not name:
        return None
    form = "{1} = int({0}.integers(1000))" if names.kinds[name] == "rng" else "{1} = {0}.randrange(1000)"
    return form.format(name, names.new("int"))


@piece("random seed")
def seeded(names):
    new = names.new("list")
    return names.choose(
        f"import random\nrandom.seed({names.number()})\n{new} = [random.randint(0, 9) for _ in range(3)]",
        f"import numpy as np\nnp.random.seed({names.number()})\n{new} = np.random.randint(0, 9, 3).tolist()",
    )


@piece("iterators", 0.7)
def iterator(names):
    source = names.some("list")
    if not source:
        return None
    names.made.add("it")
    return names.choose(f"it = iter({source})\nprint(next(it, 'end'))", "import itertools\n"
        "it = itertools.count(3)\nnext(it)")


@piece("iterators", 0.7)
def use_iterator(names):
    return "print(next(it, 'end'))" if "it" in names.made else None


@piece("copies", 0.8)
def copies(names):
    old = names.some("nest", "object", "record")
    if not old:
        return None
    new = names.new(names.kinds[old])
    return f"import copy\n{new} = copy.{names.choose('copy', 'deepcopy')}({old})"


@piece("pickles", 0.8)
def pickles(names):
    old = names.some("nest", "object", "record", "list", "array")
    if not old:
        return None
    return f"import pickle\nagain = pickle.loads(pickle.dumps({old}))\nprint(type(again).__name__, again is {old})"
