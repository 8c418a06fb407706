"""A light model of a notebook's namespace: which names probably exist, and of which kind.

It only has to be right mostly. Where it is wrong, the cell raises, in both kernels alike."""

WORDS = {
    "int": "n m k total count size",
    "text": "word label title",
    "pair": "pair point span",
    "list": "a b c xs seen items",
    "nest": "d conf tree",
    "set": "marks found",
    "array": "x y z data wave",
    "matrix": "grid mat",
    "frame": "df table",
    "rng": "rng gen",
    "dice": "dice coin",
    "deque": "line queue",
    "groups": "groups byname",
    "counts": "tally votes",
    "box": "box slot",
    "pure": "f g scaled weight",
    "changer": "push note_in extend",
    "reader": "look state peek",
    "setter": "setup advance",
    "counter": "tick step_up",
    "store": "remember keep",
    "table": "ops rules",
    "wrapped": "timed traced cached",
    "method": "grow_it again",
    "partial": "part bound",
    "class": "Base Shape Node",
    "object": "obj node shape other",
    "record_class": "Item Entry",
    "record": "item entry",
    "error": "caught problem",
    "code": "code recipe",
    "captured": "shown",
    "lines": "lines told",
}
KINDS = {word: kind for kind, words in WORDS.items() for word in words.split()}
UNSHARED = ("int", "text", "pure", "changer", "reader", "setter", "class", "record_class", "code", "captured", "lines")


class Names:
    """Names with their kinds, and the random choices made among them."""

    def __init__(self, random, features):
        self.random = random
        self.features = features
        self.kinds = {}
        self.facts = {}  # name -> anything a piece wants to remember of it
        self.made = set()  # what pieces with fixed names have made
        self.results = []  # counts of cells with a result
        self.cell = 0  # count of the cell being written
        self.target = None

    def on(self, feature):
        return self.features[feature]

    def of(self, *kinds):
        return sorted(name for name, kind in self.kinds.items() if kind in kinds)

    def some(self, *kinds):
        """A name of one of the kinds, or None."""
        found = self.of(*kinds)
        return self.random.choice(found) if found else None

    def two(self, kind):
        """Two different names of the kind, or None."""
        found = self.of(kind)
        return self.random.sample(found, 2) if len(found) > 1 else None

    def new(self, kind, fact=None):
        """A name for a new binding of the kind: often a new one, at times one in use."""
        words = WORDS[kind].split()
        free = [word for word in words if word not in self.kinds]
        if not self.features["shared names bound again"] and kind not in UNSHARED:
            words = free or [f"{self.random.choice(words)}{self.cell}"]
        name = self.random.choice(free if free and self.random.random() < 0.7 else words)
        return self.bind(name, kind, fact)

    def bind(self, name, kind, fact=None):
        self.kinds[name] = kind
        self.facts[name] = fact
        return name

    def forget(self, name):
        self.kinds.pop(name, None)
        self.facts.pop(name, None)

    def number(self, low=0, high=9):
        return self.random.randint(low, high)

    def chance(self, share):
        return self.random.random() < share

    def choose(self, *options):
        return self.random.choice(options)

    def numbers(self, low=2, high=4):
        return [self.number() for _ in range(self.number(low, high))]


# How a value of each kind is shown so that any wrong part of it is seen, and no address or order of a set.
SHOWN = {
    "int": "{0}",
    "text": "{0}",
    "pair": "{0}",
    "list": "{0}",
    "nest": "{0}",
    "set": "sorted({0})",
    "array": "{0}.tolist()",
    "matrix": "{0}.tolist(), {0}.shape",
    "frame": "{0}.to_dict('list'), list({0}.index)",
    "rng": "int({0}.integers(100))",
    "dice": "{0}.randint(0, 99)",
    "deque": "list({0}), {0}.maxlen",
    "groups": "sorted({0}.items())",
    "counts": "sorted({0}.items())",
    "box": "{0}.value, sorted(vars({0}))",
    "pure": "{0}(3)",
    "reader": "{0}()",
    "counter": "{0}()",
    "store": "{0}(7)",
    "table": "[({0}[key](2), key) for key in sorted({0})]",
    "wrapped": "{0}(4), {0}.__name__",
    "partial": "{0}(5)",
    "class": "{0}.made, {0}.__name__, [c.__name__ for c in {0}.__mro__], sorted(k.__name__ for k in {0}.kinds)",
    "object": "{0}, {0}.n, {0}.items, type({0}).__name__",
    "record_class": "{0}(1), {0}.__name__",
    "record": "{0}, {0} == type({0})({0}.n, list({0}.tags))",
    "error": "type({0}).__name__, str({0}), {0}.args",
    "lines": "list({0})",
    "captured": "{0}.stdout",
    "code": "{0}",
}


def shown(names, name):
    """An expression that shows `name`, or None where its kind shows nothing."""
    form = SHOWN.get(names.kinds.get(name))
    return form.format(name) if form else None


def digest(names, most=4):
    """A statement that shows several names."""
    able = [name for name in sorted(names.kinds) if names.kinds[name] in SHOWN]
    chosen = names.random.sample(able, min(len(able), names.number(1, most)))
    if not chosen:
        return "print('nothing yet')"
    return "print(" + ", ".join(f"'{name}', {shown(names, name)}" for name in chosen) + ")"
