use super::*;
use crate::analysis::{DefinitionKind, Read};

fn words<'a>(names: impl IntoIterator<Item = &'a crate::name::Name>) -> String {
    names
        .into_iter()
        .map(|name| name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn reads(source: &str) -> String {
    let analysis = analyse(source);
    let mark = |how: &Read| match how {
        Read::Surely => "",
        Read::Maybe => "?",
        Read::Deferred => "~",
    };
    analysis
        .reads
        .iter()
        .map(|(name, how)| format!("{name}{}", mark(how)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn writes(source: &str) -> String {
    words(&analyse(source).writes)
}

#[test]
fn names_are_read_by_pythons_own_scoping() {
    let cases = [
        ("x = y", "y"),
        ("x = x + 1", "x"),
        ("x = 1; y = x", ""),
        ("x: int", "int?"),
        ("x: T = y", "T? y"),
        ("x += y", "x y"),
        ("a.b[c] = d", "a c d"),
        ("del x", "x"),
        ("x = 1\ndel x\ny = x", "x?"),
        ("if c:\n  x = 1\nprint(x)", "c print x?"),
        ("if c:\n  x = 1\nelse:\n  x = 2\ny = x", "c"),
        ("for i in xs: y = i", "xs"),
        ("for i in xs: pass\ni", "i? xs"),
        ("while t: x", "t x?"),
        ("with a as b: c = b", "a"),
        ("try:\n  x = f\nexcept E as e:\n  y = e\nx", "E? f x?"),
        ("try:\n  x = 1\nfinally:\n  z\nx", "z"),
        (
            "match s:\n  case [a, *b]: r = a\n  case {'k': v, **rest}: v; rest\n  case P(q=w): w\n  case _: n",
            "P? n? s",
        ),
        ("a and b or c", "a b? c?"),
        ("a if b else c", "a? b c?"),
        ("a < b < c", "a b c?"),
        ("[i + k for i in xs if p]", "k? p? xs"),
        ("[j for i in xs for j in i]", "xs"),
        ("[(z := i) for i in xs]\nz", "xs z?"),
        ("{k: v for k, v in d.items()}", "d"),
        ("(y := f(x))\ny", "f x"),
        ("f'{a!r:{w}} {b=}'", "a b w"),
        ("lambda p, q=d: p + g", "d g?"),
        (
            "def f(a, b=d, *args, c: T = e, **kw) -> R: return a + g + args + kw",
            "R? T? d e g~",
        ),
        (
            "def f():\n  x = 1\n  def g(): return x + y\n  return g",
            "y~",
        ),
        ("def f():\n  global x\n  x = 1", ""),
        ("def f():\n  print(x)\n  x = 1", "print~"),
        (
            "def f():\n  def g():\n    nonlocal_ = z\n  return [w for w in v]",
            "v~ z~",
        ),
        ("def f(): return y\nf()", "y?"),
        ("def f(): return g()\ndef g(): return y\nf()", "g~ y?"),
        ("y = 1\ndef f(): return y\nf()", ""),
        ("@d(k)\ndef f(): return y", "d k y?"),
        (
            "class C(B):\n  a = x\n  b = a\n  def m(self): return a + g",
            "B a~ g~ x",
        ),
        ("class C:\n  def m(self): return C", ""),
        ("class C:\n  class D:\n    def m(self): return g", "g~"),
        ("def f[T: B](x: T) -> T: return y", "B? y~"),
        ("type A[T] = list[T | X]", "X? list?"),
        (
            "async def f():\n  async with a as b:\n    return [x async for x in b]\nawait f()",
            "a?",
        ),
        ("await g(x)", "g x"),
        ("async for i in a: pass", "a"),
        ("print(*a, **b)", "a b print"),
        ("x = [1, 2][i:j:k]", "i j k"),
        ("import a.b\na.c", ""),
        ("from m import a as b\nb\na", "a"),
        ("assert x, y", "x y?"),
        ("raise E from c", "E c"),
        ("print(x)\nx = 1", "print x"),
        ("t'{a}'", "a"),
        (
            "frame.query('x > @low and y in @names.keys()')",
            "frame low? names?",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(reads(source), expected, "{source}");
    }
}

#[test]
fn names_are_bound_in_every_way_that_python_has() {
    let cases = [
        ("a = b = 1", "a b"),
        ("(a, [b, *c]), d.e, f[0] = x", "a b c"),
        ("a: int = 1\nb: int", "a"),
        ("a += 1", "a"),
        ("import a.b, c.d as e\nfrom f import g, h as i", "a e g i"),
        ("def f(): x = 1\nclass C: y = 1", "C f"),
        ("for a in b: pass", "a"),
        ("with a as (b, c): pass", "b c"),
        ("try: pass\nexcept E as e: pass", "e"),
        ("[(y := x) for x in z]", "y"),
        (
            "match x:\n  case [a, *b] | {'k': a, **b}: pass\n  case c: pass",
            "a b c",
        ),
        ("def f():\n  global g\n  g = 1", "f"),
        ("def f():\n  global g\n  g = 1\nf()", "f g"),
        ("class C:\n  global g\n  g = 1", "C g"),
        ("type A = int", "A"),
        ("x = !ls\ny = %time 1", "x y"),
    ];
    for (source, expected) in cases {
        assert_eq!(writes(source), expected, "{source}");
    }
}

#[test]
fn changes_in_place_are_seen() {
    let cases = [
        ("a.x = 1", "a"),
        ("a[0] = 1", "a"),
        ("a.b.c[0].d = 1", "a"),
        ("a.append(1)", "a"),
        ("a.b().c()", "a"),
        ("a += [1]", "a"),
        ("a.x += 1", "a"),
        ("del a[0], b.c", "a b"),
        ("for a.x in y: pass", "a"),
        ("f(a)", ""),
        ("f(a).x = 1", ""),
        ("def f(): a.append(1)", ""),
        ("def f(): a.append(1)\nf()", "a"),
    ];
    for (source, expected) in cases {
        assert_eq!(words(&analyse(source).mutates), expected, "{source}");
    }
    assert_eq!(
        words(&analyse("try: pass\nexcept E as e: pass\ndel x").deletes),
        "e x"
    );
}

#[test]
fn definitions_are_cut_out_with_what_they_need() {
    let source = "x = 1\nimport a.b; y = 2\n@deco(k)\ndef f(p=x):\n    return g(p) + CONST\n\nclass C(B):\n    z = w\n    def m(self): acc.append(h)\n";
    let definitions = analyse(source).definitions;
    assert_eq!(definitions.len(), 3);
    assert_eq!(
        (definitions[0].source.as_str(), definitions[0].line),
        ("import a.b", 2)
    );
    let f = &definitions[1];
    assert_eq!(
        (f.source.as_str(), f.line, f.decorated),
        ("@deco(k)\ndef f(p=x):\n    return g(p) + CONST", 3, true)
    );
    assert_eq!(words(&f.needs_now), "deco k x");
    assert_eq!(words(&f.needs_later), "CONST g");
    let class = &definitions[2];
    assert_eq!((class.kind, class.line), (DefinitionKind::Class, 7));
    assert_eq!(
        (words(&class.needs_now), words(&class.needs_later)),
        ("B w".to_owned(), "acc h".to_owned())
    );
    assert_eq!(words(&class.changes_later), "acc");
}

#[test]
fn only_what_stays_defined_is_a_definition() {
    let kinds = |source: &str| {
        analyse(source)
            .definitions
            .iter()
            .map(|definition| definition.kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds("def f(): pass\nf = 1"), []);
    assert_eq!(kinds("f = 1\ndef f(): pass"), [DefinitionKind::Function]);
    assert_eq!(kinds("if x:\n  def f(): pass\n  import a"), []);
    assert_eq!(
        kinds("try:\n  import a\nexcept ImportError:\n  a = None"),
        []
    );
    assert_eq!(kinds("import a\ndel a"), []);
    assert_eq!(
        kinds("%matplotlib inline\nfrom __future__ import annotations\n%load_ext x"),
        [
            DefinitionKind::Magic,
            DefinitionKind::Future,
            DefinitionKind::Magic
        ]
    );
    assert_eq!(
        analyse("%matplotlib inline").definitions[0].source,
        "%matplotlib inline"
    );
}

#[test]
fn a_definition_knows_when_what_it_evaluated_is_bound_again() {
    let outdated = |source: &str| {
        let definitions = analyse(source).definitions;
        definitions
            .iter()
            .map(|one| one.outdated)
            .collect::<Vec<_>>()
    };
    assert_eq!(outdated("k = 1\ndef f(v=k): pass"), [false]);
    assert_eq!(outdated("def f(v=k): pass\nk = 2"), [true]);
    assert_eq!(outdated("def f(v=k): return z\nz = 2\ndel k"), [true]);
    assert_eq!(outdated("class A(A): pass"), [true]);
}

#[test]
fn functions_say_what_calling_them_does() {
    for source in [
        "def f():\n  global n\n  n = x",
        "if c:\n  def f():\n    global n\n    n = x",
        "%%time\ndef f():\n  global n\n  n = x",
    ] {
        let analysis = analyse(source);
        let called = &analysis.called_later["f"];
        assert_eq!(
            (words(&called.needs), words(&called.binds)),
            ("n x".to_owned(), "n".to_owned()),
            "{source}"
        );
    }
    let class = analyse("class C:\n  def m(self): log.append(1)");
    assert_eq!(words(&class.called_later["C"].mutates), "log");
    assert!(
        analyse("if c:\n  def f(): x\nf = 1")
            .called_later
            .is_empty()
    );
}

#[test]
fn ipython_lines_are_read_as_ipython_reads_them() {
    let cases = [
        ("!ls $d {x[0]} $$HOME", "d? x?"),
        ("files = !ls {folder}/*.txt", "folder?"),
        ("%time y = f(x)", "f x"),
        ("%timeit -n 10 f(x)", "f x"),
        ("%timeit z = x", "x"),
        ("obj.attr?", "obj?"),
        ("?obj", "obj?"),
        ("%pinfo obj", "obj?"),
        ("%cd $folder", "folder?"),
        ("%%time\ny = x", "x"),
        ("\n\n%%timeit\ny = x", "x"),
        ("%%capture out\nprint(x)", "print x"),
        ("%%bash -s {x} --out o\necho $y", "x?"),
        ("%%writefile {name}\nx = y", "name?"),
        ("%%html\n<b>{x}</b>", ""),
        ("%xdel -n x", "x"),
    ];
    for (source, expected) in cases {
        let analysis = analyse(source);
        assert_eq!(reads(source), expected, "{source}");
        assert!(
            analysis.parsed && analysis.dynamic.is_none(),
            "{source}: {analysis:?}"
        );
    }
    assert_eq!(writes("%%capture out\nx = 1"), "out x");
    assert_eq!(writes("%%timeit\nx = 1"), "");
    assert_eq!(writes("%%bash --out o --err e\nls"), "e o");
    assert_eq!(writes("%time x = 1"), "x");
}

#[test]
fn what_the_source_does_not_show_is_said() {
    let dynamic = [
        "globals()['x'] = 1",
        "exec('x = 1')",
        "eval(s)",
        "vars()",
        "dir()",
        "%run a.py",
        "%who",
        "%reset -f",
        "%unknown x",
        "%%unknown\nx",
        "from m import *",
        "import __main__",
        "get_ipython().run_cell('x')",
        "import sys; sys._getframe()",
        "def f(): return globals()\nf()",
    ];
    for source in dynamic {
        assert!(analyse(source).dynamic.is_some(), "{source}");
    }
    let plain = [
        "vars(x)",
        "dir(x)",
        "x.eval()",
        "import a",
        "def f(): return locals()",
        "%matplotlib inline",
        "def f(): eval(s)",
        "!ls",
    ];
    for source in plain {
        assert_eq!(analyse(source).dynamic, None, "{source}");
    }
    assert!(
        analyse("def f(): eval(s)").definitions[0]
            .dynamic_later
            .is_some()
    );
    let broken = analyse("x = (1 +\n");
    assert!(!broken.parsed && broken.dynamic == Some(Dynamic::Unparsable));
}

#[test]
fn monstrous_sources_do_no_harm() {
    for source in [
        "(".repeat(100_000),
        "[".repeat(5_000) + &"]".repeat(5_000),
        "x = ".to_owned() + &"a + ".repeat(20_000) + "b",
        "not ".repeat(50_000) + "x",
        "x".to_owned() + &".a".repeat(20_000),
        "x".to_owned() + &"()".repeat(20_000),
        "x = ".to_owned() + &"a + ".repeat(2_000_000) + "b",
        "-".repeat(4_000) + "x",
        "-".repeat(3_000_000) + "x",
        "lambda a, b: ".repeat(10_000) + "x",
        "(".repeat(5_000) + "x" + &")".repeat(5_000),
        "a if b else ".repeat(10_000) + "c",
        "%time ".repeat(5_000) + "x",
        "%%time\n".repeat(5_000) + "x",
        "!echo {".to_owned() + &"-".repeat(5_000) + "x}",
        "x: '".to_owned() + &"-".repeat(5_000) + "x'",
        (0..1_000)
            .map(|depth| " ".repeat(depth) + "def f(a=b):\n")
            .collect::<String>()
            + &" ".repeat(1_000)
            + "y",
        "if x:\n".to_owned()
            + &(1..90)
                .map(|depth| " ".repeat(depth) + "if x:\n")
                .collect::<String>()
            + &" ".repeat(91)
            + "y",
    ] {
        let _ = analyse(&source);
    }
}

#[test]
fn what_is_deep_but_legal_is_followed() {
    for source in [
        "x = ".to_owned() + &"a + ".repeat(10_000) + "b",
        "x = ".to_owned() + &"[".repeat(2_000) + "a, b" + &"]".repeat(2_000),
        "x = ".to_owned() + &"(".repeat(5_000) + "a + b" + &")".repeat(5_000),
        "x = a".to_owned() + &".m()".repeat(3_000) + " + b",
    ] {
        assert_eq!(reads(&source), "a b");
    }
    // Brackets in text do not nest.
    let text = format!("x = '{}' + a", "(".repeat(1_000));
    assert_eq!(reads(&text), "a");
}

#[test]
fn the_completed_name_is_the_root_of_the_expression() {
    let root = |code: &str| {
        let cursor = code.chars().position(|letter| letter == '|').unwrap();
        completion_root(&code.replace('|', ""), cursor).map(|name| name.to_string())
    };
    assert_eq!(root("plot(model.coe|").as_deref(), Some("model"));
    assert_eq!(root("x = mod|el.a").as_deref(), Some("model"));
    assert_eq!(root("é = df.|").as_deref(), Some("df"));
    assert_eq!(root("foo(|"), None);
    assert_eq!(root("3.|"), None);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}") {
        let _ = analyse(&text);
    }

    #[test]
    fn no_near_python_makes_it_panic(text in "([a-c]|[=:.,(){}\\[\\]%!?$@ \n]|def |class |for |in |if |lambda |import |f'|%%){0,40}") {
        let analysis = analyse(&text);
        proptest::prop_assert!(analysis.parsed || analysis.dynamic.is_some());
    }
}
