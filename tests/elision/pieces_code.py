"""Pieces about code: functions, classes and what they change when they are called."""

from pieces import piece


@piece("functions", 2)
def pure(names):
    called, scale = names.some("pure", "wrapped"), names.some("int")
    new = names.new("pure")
    number = names.number(1, 4)
    if called and called != new and names.chance(0.6) and called not in _below(names, new):
        names.facts[new] = {called, *_below(names, called)}
        return f"def {new}(v):\n    return ({called}(v) + {number}) % 97"
    if scale and names.chance(0.6):
        return f"def {new}(v):\n    return v * {number} + {scale} % 7"
    return f"def {new}(v, extra={number}):\n    '''adds {number}'''\n    return v + extra"


def _below(names, name):
    """The functions that `name` calls, as far as they are known: no recursion without end is written on purpose."""
    fact = names.facts.get(name)
    return fact if isinstance(fact, set) else set()


@piece("functions")
def call_pure(names):
    name, value = names.some("pure", "wrapped", "partial"), names.some("int")
    return name and f"{names.new('int')} = {name}({value or 2})"


@piece("hidden changes", 1.5)
def changer(names):
    called = names.some("changer")
    new = names.new("changer")
    number = names.number()
    if called and called != new and new not in _below(names, called) and names.chance(0.5):
        names.facts[new] = {called, *_below(names, called)}
        return f"def {new}(into, v={number}):\n    {called}(into, v + 1)\n    return into"
    return (f"def {new}(into, v={number}):\n"
        f"    {names.choose('into.append(v)', 'into.insert(0, v)', 'into += [v, v]')}\n    return into")


@piece("hidden changes", 2)
def call_changer(names):
    name, value = names.some("changer"), names.some("list")
    outer = names.some("nest")
    if not name or not value:
        return None
    target = names.choose(value, f"{outer}['k']" if outer else value)
    return names.choose(
        f"{name}({target})",
        f"{name}({target}, {names.number()})[-1:]",
        f"list(map({name}, [{target}]))[0] is {target}",
    )


@piece("hidden changes", 1.5)
def reader(names):
    value = names.some("list", "int", "nest", "text")
    called = names.some("reader")
    new = names.new("reader")
    if not value:
        names.forget(new)
        return None
    if called and called != new and new not in _below(names, called) and names.chance(0.4):
        names.facts[new] = {called, *_below(names, called)}
        return f"def {new}():\n    return [{called}(), repr({value})]"
    return f"def {new}():\n    return repr({value})"


@piece("hidden changes", 1.5)
def global_changer(names):
    value = names.some("list")
    new = names.new("reader")
    if not value:
        names.forget(new)
        return None
    return f"def {new}():\n    {value}.append(len({value}))\n    return {value}[-2:]"


@piece("global statement", 1.2)
def setter(names):
    value = names.new(names.choose("int", "list"))
    new = names.new("setter", value)
    kind = names.kinds[value]
    names.forget(value)
    body = f"{value} = {names.number()}" if kind == "int" else f"{value} = [{names.number()}]"
    names.facts[new] = (value, kind)
    return f"def {new}():\n    global {value}\n    {body}"


@piece("global statement", 1.2)
def call_setter(names):
    name = names.some("setter")
    if not name:
        return None
    names.bind(*names.facts[name])
    return f"{name}()"


@piece("global deletion")
def deleter(names):
    name = names.some("int")
    if not name or len(names.kinds) < 6:
        return None
    names.forget(name)
    return f"def remove():\n    global {name}\n    del {name}\nremove()"


@piece("closures", 1.5)
def closure(names):
    new = names.new("counter")
    inner = names.some("list")
    if inner and names.chance(0.5):
        return (
            f"def over(kept):\n    def inner():\n        kept.append(len(kept))\n        return sum(kept)\n"
            f"    return inner\n"
            f"{new} = over({inner})"
        )
    return (
        f"def counting(start):\n    def inner():\n        nonlocal start\n        start += {names.number(1, 3)}\n"
        f"        return start\n    return inner\n{new} = counting({names.number()})"
    )


@piece("closures", 1.5)
def pair_of_closures(names):
    one, other = names.new("counter"), names.new("reader")
    return (
        "def linked():\n    held = [0]\n    def up():\n        held[0] += 1\n        return held[0]\n"
        f"    def see():\n        return list(held)\n    return up, see\n{one}, {other} = linked()"
    )


@piece("closures")
def call_counter(names):
    name = names.some("counter")
    return name and f"{names.new('int')} = {name}()"


@piece("mutable defaults", 1.2)
def store(names):
    new = names.new("store")
    return f"def {new}(v, kept=[{names.number()}]):\n    kept.append(v)\n    return list(kept)"


@piece("mutable defaults", 1.2)
def call_store(names):
    name = names.some("store")
    return name and f"print({name}({names.number()}), {name}.__defaults__)"


@piece("lambdas", 1.2)
def table(names):
    new, scale, called = names.new("table"), names.some("int"), names.some("pure")
    return f"{new} = {{'x': lambda v: v + {scale or 1}, 'y': lambda v, w=[1]: v * len(w), 'z': {called or 'abs'}}}"


@piece("lambdas")
def change_table(names):
    name, called = names.some("table"), names.some("pure")
    return name and f"{name}['{names.choose('x', 'w')}'] = lambda v: {called or 'int'}(v) + {names.number()}"


@piece("lambdas")
def lambda_name(names):
    scale = names.some("int") or "2"
    return f"{names.new('pure')} = lambda v: v * {scale} % 89"


@piece("partials")
def partial(names):
    called = names.some("pure")
    changer, value = names.some("changer"), names.some("list")
    if changer and value and names.chance(0.5):
        return f"import functools\n{names.new('partial')} = functools.partial({changer}, {value})"
    return called and f"import functools\n{names.new('partial')} = functools.partial(lambda p, q: p * {called}(q), 3)"


@piece("decorators", 1.2)
def decorated(names):
    names.made.add("counted")
    new = names.new("wrapped")
    return (
        "import functools\ncalls = []\ndef counted(inner):\n    @functools.wraps(inner)\n    def outer(*args):\n"
        f"        calls.append(args)\n        return inner(*args)\n    return outer\n@counted\ndef {new}(v):\n"
        f"    return v + {names.number()}"
    )


@piece("decorators")
def decorated_elsewhere(names):
    if "counted" not in names.made:
        return None
    new = names.new("wrapped")
    return f"@counted\ndef {new}(v):\n    return v * 2\nprint({new}(1), len(calls))"


@piece("decorators")
def registry(names):
    new = names.new("pure")
    return (
        "if 'handlers' not in globals():\n    handlers = {}\ndef register(name):\n    def keep(inner):\n"
        "        handlers[name] = inner\n"
        f"        return inner\n    return keep\n@register('{new}')\ndef {new}(v):\n    return v - {names.number()}\n"
        "print([(key, handlers[key](9)) for key in sorted(handlers)])"
    )


@piece("decorators")
def class_decorator(names):
    new = names.new("wrapped")
    return (
        "class Counted:\n    def __init__(self, inner):\n        self.inner, self.times = inner, 0\n"
        "        self.__name__ = inner.__name__\n"
        "    def __call__(self, v):\n        self.times += 1\n        return self.inner(v), self.times\n"
        f"@Counted\ndef {new}(v):\n    return v * 3"
    ) if names.on("class decorators") else None


@piece("caches")
def cached(names):
    new = names.new("wrapped")
    return (f"from functools import lru_cache\n@lru_cache(maxsize=None)\ndef {new}(v):\n"
        f"    return v if v < 2 else {new}(v - 1) + {new}(v - 2)")


@piece("cache counts")
def cache_counts(names):
    name = names.some("wrapped")
    return name and f"print({name}(5), getattr({name}, 'cache_info', lambda: None)())"


@piece("function attributes", 0.8)
def function_attribute(names):
    name = names.some("pure", "reader", "changer", "store")
    return name and f"{name}.note = getattr({name}, 'note', 0) + {names.number(1)}\nprint({name}.note)"


@piece("generators inside", 1.2)
def generators(names):
    source, called = names.some("list"), names.some("pure")
    return source and names.choose(
        f"def upto(stop):\n    for v in range(stop):\n        got = yield v\n        if got:\n"
        f"            yield got\n{names.new('list')} = list(upto({names.number(1, 5)}))",
        f"{names.new('int')} = sum({called or 'int'}(v) for v in {source} if isinstance(v, int))",
        f"def walk(tree):\n    for v in tree:\n        yield from walk(v) if isinstance(v, list) else [v]\n"
        f"print(list(walk([{source}, [{source}]])))",
    )


@piece("comprehensions", 1.2)
def comprehensions(names):
    source = names.some("list")
    if not source:
        return None
    new = names.new("list")
    return names.choose(
        f"{new} = [v * w for v in {source}[:2] for w in (1, 2)]",
        f"{new} = [last := v for v in {source}]\nprint(last if {new} else 'none')",
        f"{names.new('nest')} = {{'k': [v for v in {source}], 'm': {{'n': len({source}), 'deep': [{source}]}}}}",
        f"print({{v: w for v, w in enumerate({source})}}, any((hit := v) for v in {source} if v), 'hit' in globals())",
    )


@piece("classes", 2)
def new_class(names):
    parent = names.some("class")
    known = set(names.of("class"))
    new = names.new("class")
    number = names.number()
    if new in known and not names.on("classes defined again"):
        return None
    if parent and parent != new and names.chance(0.6):
        return (
            f"class {new}({parent}):\n    extra = {number}\n    def __init__(self, n, more=1):\n"
            f"        super().__init__(n + more)\n"
            f"    def grow(self, k=1):\n        return super().grow(k) + self.extra"
        )
    called = names.some("pure", "reader")
    use = f"{called}({'self.n' if names.kinds.get(called) == 'pure' else ''})" if called else "self.n"
    return (
        f"class {new}:\n    made = 0\n    kinds = []\n    def __init__(self, n):\n"
        f"        self.n, self.items = n, []\n        type(self).made += {names.on('class state') and 1 or 0}\n"
        f"    def __init_subclass__(cls, **more):\n        super().__init_subclass__(**more)\n"
        f"        {'cls.kinds.append(cls)' if names.on('class state') else 'pass'}\n"
        f"    def grow(self, k=1):\n        self.items.append(k)\n        self.n += k\n        return self.n\n"
        f"    def used(self):\n        return {use}\n    @property\n    def double(self):\n"
        f"        return self.n * 2\n"
        f"    @double.setter\n    def double(self, v):\n        self.n = v // 2\n    @classmethod\n"
        f"    def of(cls, n):\n        return cls(n)\n"
        f"    @staticmethod\n    def fixed():\n        return {number}\n"
        f"    def __eq__(self, other):\n        return type(other) is type(self) and other.n == self.n\n"
        f"    def __hash__(self):\n        return hash(self.n)\n"
        f"    def __repr__(self):\n        return f'{{type(self).__name__}}({{self.n}})'"
    )


@piece("classes", 2)
def new_object(names):
    name = names.some("class")
    return name and f"{names.new('object', name)} = {name}{names.choose('', '.of')}({names.number()})"


@piece("classes", 2.5)
def use_object(names):
    name, cls = names.some("object"), names.some("class")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}.grow({number})",
        f"{name}.double = {number}",
        f"{name}.items.append({number})",
        f"print({name}.double, {name}.used(), {name}.fixed())",
        f"print(isinstance({name}, {cls}), type({name}) is {cls}, {name} == {cls}({number}))",
        f"print({name} in {{{name}: 1}}, {name}.__class__.__name__, {name}.__module__)",
        f"setattr({name}, 'late', {number})\nprint(sorted(vars({name})))",
        f"{name}.__dict__.update(n={number})",
    )


@piece("bound methods")
def method(names):
    name = names.some("object")
    return name and f"{names.new('method')} = {name}.grow"


@piece("bound methods")
def call_method(names):
    name = names.some("method")
    return name and f"print({name}(2), {name}.__self__.items)"


@piece("class attributes", 1.2)
def class_attribute(names):
    name = names.some("class")
    if not name:
        return None
    number = names.number()
    return names.choose(
        f"{name}.made = {number}",
        f"{name}.fixed = staticmethod(lambda: {number})",
        f"{name}.late = {number}\nprint({name}.late)",
        f"setattr({name}, 'kinds', [])",
        f"def patched(self, k=1):\n    return self.n - k\n{name}.grow = patched",
    )


@piece("class attributes")
def see_class_attribute(names):
    name = names.some("class")
    return name and f"print(getattr({name}, 'late', 'unset'), {name}.made, {name}.fixed())"


@piece("dataclasses", 1.2)
def record_class(names):
    new = names.new("record_class")
    return (
        "import dataclasses\n@dataclasses.dataclass(order=True)\n"
        f"class {new}:\n    n: int\n    tags: list = dataclasses.field(default_factory=list)\n"
        f"    def add(self, tag):\n        self.tags.append(tag)\n        return self"
    )


@piece("dataclasses", 1.2)
def new_record(names):
    name, tags = names.some("record_class"), names.some("list")
    if not name:
        return None
    new, number = names.new("record"), names.number()
    return f"{new} = {name}({number}{', ' + tags if tags and names.chance(0.5) else ''})"


@piece("dataclasses", 1.2)
def use_record(names):
    name = names.some("record")
    return name and names.choose(
        f"{name}.add({names.number()}).n += 1",
        f"import dataclasses\nprint(dataclasses.asdict({name}), {name} < dataclasses.replace({name}, n=50))",
    )


@piece("enums", 0.8)
def enums(names):
    names.made.add("Color")
    return (
        "import enum\nclass Color(enum.Enum):\n    RED = 1\n    BLUE = 'b'\n    def low(self):\n"
        "        return self.name.lower()\n"
        f"color = Color.{names.choose('RED', 'BLUE')}"
    )


@piece("enums", 0.8)
def use_enums(names):
    return names.choose(
        "print(color, color is Color.RED, color.low(), list(Color))",
        "print(Color(1) is Color.RED, {Color.RED: 1}.get(color), isinstance(color, Color))",
    ) if "Color" in names.made else None


@piece("named tuples", 0.8)
def named_tuple(names):
    names.made.add("Spot")
    return f"from collections import namedtuple\nSpot = namedtuple('Spot', 'x y')\nspot = Spot({names.number()}, [1])"


@piece("named tuples", 0.8)
def use_named_tuple(names):
    return names.choose(
        "print(spot, isinstance(spot, Spot), spot._replace(x=0))", "spot.y.append(2)\nprint(spot, Spot(1, 2))"
    ) if "Spot" in names.made else None


@piece("single dispatch", 0.6)
def dispatch(names):
    names.made.add("shape_of")
    return ("from functools import singledispatch\n@singledispatch\ndef shape_of(v):\n    return 'any'\n"
        "print(shape_of(1))")


@piece("single dispatch", 0.8)
def use_dispatch(names):
    if "shape_of" not in names.made:
        return None
    kind = names.choose("int", "list", "str")
    return (f"@shape_of.register({kind})\ndef of_{kind}(v):\n    return '{kind}'\n"
        f"print(shape_of([1]), shape_of(1), shape_of('s'))")


@piece("type variables", 0.5)
def type_variable(names):
    names.made.add("Held")
    return ("import typing\nT = typing.TypeVar('T')\nclass Held(typing.Generic[T]):\n"
        "    def __init__(self, v):\n        self.v = v\nheld_one = Held[int](3)")


@piece("type variables", 0.5)
def use_type_variable(names):
    return "print(type(held_one) is Held, held_one.v, type(Held[str]('s')).__name__)" if "Held" in names.made else None


@piece("contexts", 0.8)
def context(names):
    value = names.some("list") or "[]"
    return (
        "from contextlib import contextmanager\n@contextmanager\ndef within(trace):\n    trace.append('in')\n"
        "    try:\n        yield trace\n"
        f"    finally:\n        trace.append('out')\n"
        f"with within({value if value != '[]' else '[]'}[:]) as trace:\n    print(trace)\nprint(trace)"
    )


@piece("class hierarchies at once", 0.8)
def hierarchy(names):
    names.made.add("both")
    return (
        "class Left:\n    def who(self):\n        return ['left']\nclass Right:\n    def who(self):\n"
        "        return ['right']\n"
        "class Both(Left, Right):\n    def who(self):\n        return ['both', *super().who(), *Right.who(self)]\n"
        "both = Both()\nprint(both.who(), [c.__name__ for c in Both.__mro__])"
    )


@piece("class hierarchies at once", 0.8)
def use_hierarchy(names):
    return "print(both.who(), isinstance(both, Right), issubclass(Both, Left))" if "both" in names.made else None


@piece("local classes", 0.6)
def local_class(names):
    names.made.add("Made")
    return (
        f"def build(base):\n    class Made(base):\n        size = {names.number()}\n"
        f"        def __repr__(self):\n            return f'Made({{self.size}})'\n"
        "    return Made\nMade = build(object)\nmade = Made()\nprint(made, type(made) is Made)"
    )


@piece("local classes", 0.6)
def use_local_class(names):
    return "made.size += 1\nprint(made, isinstance(made, Made), Made.size)" if "Made" in names.made else None


@piece("recursion", 0.8)
def recursion(names):
    names.made.add("even")
    return (
        f"def even(v):\n    return v == 0 or odd(v - 1)\ndef odd(v):\n    return v != 0 and even(v - 1)\n"
        f"print(even({names.number(2, 9)}))"
    )


@piece("recursion", 0.8)
def use_recursion(names):
    return f"print(even({names.number()}), odd(3))" if "even" in names.made else None
