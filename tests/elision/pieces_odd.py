"""Pieces about what is easily forgotten: branches, errors, shadowed builtins, executed text, magics, results."""

from pieces import piece


@piece("branches", 1.2)
def branch(names):
    value = names.some("int")
    new = names.new("int")
    other = names.new("list")
    if not value or names.chance(0.5):
        return f"if {value or 3} % 2:\n    {new} = 1\nelse:\n    {new} = 2\n{other} = [{new}]"
    names.forget(new) if names.chance(0.3) else None
    return f"if {value} > {names.number(0, 20)}:\n    {new} = 5\n{other} = [6]"


@piece("branches")
def maybe(names):
    return (f"print({names.choose('mostly', 'rarely')!r} in globals())\nif {names.some('int') or 1} % 3:\n"
        f"    mostly = 1")


@piece("loops", 1.2)
def loops(names):
    source, new = names.some("list"), names.new("int")
    return source and names.choose(
        f"for {new} in {source}[:3] or [0]:\n    pass\nelse:\n    print('ended', {new})",
        f"{new} = 0\nwhile {new} < 3:\n    {new} += 1\n    if {new} in {source}:\n        break\nelse:\n"
        f"    print('no break')",
        f"for {new}, v in enumerate({source}[:2] or [1]):\n    print({new}, v, end=';')\nprint()",
    )


@piece("match", 1.2)
def match(names):
    value = names.some("list", "nest", "pair", "int", "record", "object")
    new = names.new("text")
    return value and (
        f"match {value}:\n    case [first, *others]:\n        {new} = f'list {{first}} {{len(others)}}'\n"
        f"    case {{'k': held, **others}}:\n        {new} = f'dict {{held}} {{sorted(others)}}'\n"
        f"    case int(number) if number > 5:\n        {new} = f'big {{number}}'\n    case _:\n        {new} = 'else'"
    )


@piece("caught errors", 1.2)
def caught(names):
    value = names.some("list") or "[1]"
    return names.choose(
        f"try:\n    {value}[99]\nexcept IndexError as e:\n    {names.new('error')} = e\nprint('e' in globals())",
        "try:\n    {}['x']\nexcept (KeyError, ValueError) as e:\n    print(type(e).__name__, e)\nfinally:\n"
        "    print('finally')",
        "try:\n    nothing_here\nexcept NameError as e:\n    print(e)\nelse:\n    print('was there')",
        f"try:\n    raise ExceptionGroup('some', [ValueError({names.number()}), TypeError('t')])\n"
        f"except* ValueError as several:\n    print(several.exceptions)\nexcept* TypeError:\n    print('type')",
    )


@piece("own errors", 0.8)
def own_error(names):
    names.made.add("Broken")
    return (
        "class Broken(ValueError):\n    def __init__(self, code):\n        super().__init__(f'code {code}')\n"
        "        self.code = code\n"
        f"def check(v):\n    if v > 4:\n        raise Broken(v)\n    return v\ntry:\n"
        f"    print(check({names.number()}))\n"
        f"except Broken as e:\n    print('broken', e.code)"
    )


@piece("own errors", 0.8)
def use_own_error(names):
    return (f"try:\n    print(check({names.number()}))\nexcept Broken as e:\n"
        f"    print('again', e, e.code)" if "Broken" in names.made else None)


@piece("kept own errors", 0.8)
def keep_own_error(names):
    if "Broken" not in names.made:
        return None
    return "try:\n    check(7)\nexcept Broken as e:\n    kept_error = e\nprint(kept_error)"


@piece("kept own errors", 0.8)
def use_kept_error(names):
    return "print(kept_error, kept_error.code, kept_error.args)" if "Broken" in names.made else None


@piece("raised errors", 1, raises=True)
def raised(names):
    value, called = names.some("list") or "[]", names.some("pure", "reader")
    return names.choose(
        "1 / 0",
        f"{value}[77]",
        "{'a': 1}['b']",
        "missing_name",
        f"print(missing_{names.number()})",
        "raise ValueError('on purpose', 3)",
        "assert 1 > 2, 'not so'",
        f"{called or 'int'}(1, 2, 3, 4)",
        f"{value}.append({names.number()})\nraise RuntimeError(f'{{len({value})}} now')",
        f"{value}.nothing",
        "try:\n    int('x')\nexcept ValueError as e:\n    raise KeyError('outer') from e",
        "from math import nothing_of_this",
        "import no_module_of_this_name",
    )


@piece("syntax errors", 0.3, raises=True, whole=True)
def syntax_error(names):
    return names.choose("print('never'\nx = = 2", "def broken(:\n    pass", "return 5", "for v in [1]:\nprint(v)")


@piece("exits", 0.15, raises=True)
def exits(names):
    return names.choose("raise SystemExit(2)", "raise KeyboardInterrupt")


@piece("shadowed builtins", 1)
def shadow(names):
    if not names.chance(0.5):
        return "sum = lambda values: 'own sum'\nprint(sum([1]))\ndel sum\nprint(sum([1]))"
    names.bind("shadowed", "int")
    word = names.choose("list", "sum", "max")
    names.facts["shadowed"] = word
    return f"shadowed = 1\n{word} = {names.number()}"


@piece("shadowed builtins", 2)
def see_shadow(names):
    word = names.facts.get("shadowed")
    if not word:
        return None
    names.forget("shadowed")
    return f"print({word})\ndel {word}\nprint({word} is __import__('builtins').{word})"


@piece("namespace", 1)
def by_globals(names):
    new = names.new(names.choose("int", "list"))
    value = names.number() if names.kinds[new] == "int" else names.numbers()
    return names.choose(
        f"globals()['{new}'] = {value}", f"vars().update({new}={value})", f"locals()['{new}'] = {value}"
    )


@piece("namespace", 0.8)
def see_globals(names):
    value = names.some("list", "int", "text")
    return value and names.choose(
        f"print(globals().get('{value}'), '{value}' in vars(), 'absent' in dir())",
        f"print(sorted(name for name in dir() if name in ('{value}', 'n', 'a', 'b', 'm')))",
        f"globals().pop('{value}x', None)\nprint(globals()['{value}'])",
    )


@piece("text as code", 1)
def execute(names):
    value = names.some("list", "int")
    new = names.new("int")
    return names.choose(
        f"exec('{new} = {names.number()}')",
        f"{new} = eval('{names.number()} + len(str({value}))')" if value else f"{new} = eval('3')",
        f"exec(compile('{new} = 4', 'text', 'exec'), globals())",
    )


@piece("text as code", 0.8)
def code_name(names):
    value = names.some("list")
    return value and f"{names.new('code')} = '{value}.append({names.number()})'"


@piece("text as code", 0.8)
def run_code(names):
    name = names.some("code")
    return name and f"exec({name})"


@piece("text as code", 0.6)
def function_of_text(names):
    new = names.new("pure")
    return f"exec('def {new}(v):\\n    return v + {names.number()}')\nprint({new}(1))"


@piece("modules", 1.2)
def modules(names):
    names.made.add("modules")
    value = names.some("int") or 2
    return names.choose(
        f"import os.path, json as js\nprint(os.path.basename('p/q'), js.dumps([{value}]))",
        f"from math import *\n{names.new('int')} = floor(sqrt({value}) if {value} > 0 else pi)",
        f"import xml.dom.minidom\nprint(xml.dom.minidom.parseString('<a/>').documentElement.tagName)",
        f"from math import floor as down, hypot\nprint(down(2.5 * {value}), hypot(3, 4))",
        f"import string as words\n{names.new('text')} = words.ascii_letters[:3]",
    )


@piece("modules", 0.8)
def use_modules(names):
    return names.choose(
        "print(os.path.join('a', 'b'))",
        "print(floor(3.5), factorial(3))",
        "print(js.loads('[1]'))",
        "print(words.digits)",
    ) if "modules" in names.made else None


@piece("modules", 0.8)
def module_in_function(names):
    new = names.new("pure")
    return f"import math\ndef {new}(v):\n    import json\n    return math.floor(v / 2) + len(json.dumps([v]))"


@piece("async", 0.6)
def awaited(names):
    names.made.add("later")
    return (
        f"import asyncio\nasync def later(v):\n    await asyncio.sleep(0)\n    return v + 1\n"
        f"{names.new('int')} = await later({names.number()})"
    )


@piece("async", 0.6)
def await_again(names):
    return "print(await later(1))" if "later" in names.made else None


@piece("captures", 0.8, whole=True)
def capture(names):
    value = names.some("list", "int") or "3"
    return f"%%capture {names.new('captured')}\nprint('hidden', {value})\n{names.new('int')} = {names.number()}"


@piece("shell lines", 1)
def shell(names):
    value = names.some("int", "text", "list")
    return names.choose(
        f"!echo told ${value or 'HOME_OF_NONE'}",
        f"!echo {{{value or 1}}} end",
        f"{names.new('lines')} = !printf 'p\\nq\\n'",
        f"{names.new('lines')} = !echo {value and '$' + value or 'none'}",
    )


@piece("cell magics", 0.4, whole=True)
def bash(names):
    return "%%bash\necho from bash\nexit 0"


@piece("who", 0.5)
def who(names):
    return names.choose("%who_ls int", "%who_ls list", "told_who = %who_ls int\nprint(told_who)")


@piece("settings", 0.5)
def setting(names):
    return names.choose(
        "%precision 3", "%precision", "%pprint", "%config InteractiveShell.ast_node_interactivity = 'last_expr'"
    )


@piece("results", 1, whole=False)
def results(names):
    if not names.results:
        return None
    last = names.choose(*names.results)
    return names.choose(
        "print(_)",
        "print(_, __)",
        "kept_result = _",
        f"print(_{last})",
        f"print(Out[{last}], {last} in Out, {max(names.results)} in Out)",
        "print(sorted(Out))",
        f"_{last} is Out[{last}]",
        "print(len(_) if hasattr(_, '__len__') else _)",
    )


@piece("change of a result", 0.6)
def change_result(names):
    name = names.some("list")
    return name and f"{name}.append({names.number()})\nprint(_ is {name})" if names.results else None


@piece("inputs", 0.6)
def inputs(names):
    if names.target and not names.on("inputs elsewhere"):
        return None
    return names.choose("print(len(In))", "print(In[1][:20])", "print(_i[:20])", "print(len(_ih), _ii[:10])")


@piece("types", 0.8)
def types(names):
    value = names.some("list", "int", "array", "frame", "object", "record", "pair", "deque", "rng")
    called = names.some("pure", "reader", "changer")
    text = f"print(type({value}), type({value}).__module__)" if value else None
    if not value or not called:
        return text
    return names.choose(text, f"print({called}.__name__, {called}.__doc__, {called}.__module__)")


@piece("annotations", 0.6)
def annotations(names):
    new = names.new("int")
    return f"{new}: int = {names.number()}\nprint(__annotations__.get('{new}'))"


@piece("main", 0.6)
def main(names):
    value = names.some("int", "list", "text")
    return names.choose(
        "print(__name__)",
        f"import __main__\nprint(hasattr(__main__, '{value or 'absent'}'))",
        f"import sys\nprint(getattr(sys.modules['__main__'], '{value}', None))" if value else "print(__name__)",
        f"import __main__\n__main__.{names.new('int')} = {names.number()}",
    )


@piece("strings", 0.8)
def strings(names):
    old, value = names.some("text"), names.some("int", "list")
    new = names.new("text")
    return names.choose(
        f"{new} = ('%s/%r' % ({value or 1}, 'q'))[:12]",
        f"{new} = '-'.join(str(v) for v in [{value or 1}, {old or 2}])[:12]",
        f"{new} = '{{}}{{x}}'.format({value or 1}, x=2)[:12]",
        f"{new} = f'{{{value or 1}!r:>8}}'[:12]",
    )


@piece("several printed", 0.6)
def printed(names):
    value = names.some("int", "text", "list")
    return value and f"import sys\nsys.stdout.write('w')\nprint({value}, sep='', end='|', flush=True)\nprint('after')"


@piece("display", 0.5)
def displayed(names):
    value = names.some("int", "list")
    return value and f"display({value})\n{value};"
