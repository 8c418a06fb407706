use proptest::prelude::*;

use super::*;
use crate::analysis::python;
use crate::cell;

fn names(text: &str) -> BTreeSet<Name> {
    text.split_whitespace().map(Name::from).collect()
}

fn step(reads: &str, writes: &str) -> Access {
    Access {
        reads: names(reads),
        writes: names(writes),
        is_step: true,
        ..Access::default()
    }
}

/// The graph of sources; those with a `#|` line are steps.
fn of(sources: &[&str]) -> Graph {
    let mut graph = Graph::new();
    let mut accesses = Accesses::default();
    for source in sources {
        let workflow = cell::resolve(&serde_json::Value::Null, source, "#").unwrap();
        graph.add(accesses.next(&python::analyse(source), workflow.as_ref()));
    }
    graph
}

/// `1<0 read x, order y`: one edge a line.
fn edges(graph: &Graph) -> Vec<String> {
    let text = |reason: &Reason| match reason {
        Reason::Read(name) => format!("read {name}"),
        Reason::Order(name) => format!("order {name}"),
        Reason::After => "after".to_owned(),
        Reason::Control => "control".to_owned(),
    };
    graph
        .edges()
        .map(|edge| {
            let reasons: Vec<String> = edge.reasons.iter().map(text).collect();
            format!("{}<{} {}", edge.to, edge.from, reasons.join(", "))
        })
        .collect()
}

#[test]
fn readers_follow_the_last_writer_and_writers_the_readers_since() {
    let mut graph = Graph::new();
    for cell in [
        step("", "x"),
        step("x", "y"),
        step("x", "z"),
        step("", "x"),
        step("", "x"),
        step("x y", ""),
    ] {
        graph.add(cell);
    }
    assert_eq!(
        edges(&graph),
        [
            "1<0 read x",
            "2<0 read x",
            "3<1 order x",
            "3<2 order x",
            "4<3 order x",
            "5<1 read y",
            "5<4 read x"
        ]
    );
    assert_eq!(graph.rounds(), [0, 1, 1, 0, 0, 2]);
    assert_eq!(graph.overlaps(), [vec![0, 3, 4], vec![1, 2]]);
}

#[test]
fn plain_cells_keep_their_order_and_dynamic_ones_run_alone() {
    let graph = of(&[
        "x = 1",
        "#| target: a\ny = x",
        "z = 1",
        "exec(code)",
        "#| target: a\ny",
        "#| target: b\nw = 1",
        "v = x",
    ]);
    assert_eq!(
        edges(&graph),
        [
            "1<0 read x",
            "2<0 control",
            "3<1 control",
            "3<2 control",
            "4<1 read y",
            "4<3 control",
            "5<3 control",
            "6<0 read x",
            "6<3 control"
        ]
    );
    assert_eq!(graph.overlaps(), [[4, 5]]);
}

#[test]
fn what_a_function_needs_counts_for_the_cell_that_calls_it() {
    let graph = of(&[
        "k = 1\nlog = []",
        "def f(): return g() + h.c\nclass K:\n    def m(self): log.append(k)",
        "def g():\n    global k\n    k += 1",
        "#| target: a\nf()",
        "#| target: b\nprint(k)",
        "#| target: c\nK()",
        "#| target: d\nprint(log)",
    ]);
    let access = |cell: usize| graph.access(cell).unwrap();
    assert_eq!(access(1).reads, names(""));
    assert_eq!(
        (access(3).reads.clone(), access(3).writes.clone()),
        (names("f g h k"), names("k"))
    );
    assert!(edges(&graph).contains(&"4<3 read k".to_owned()));
    assert!(edges(&graph).contains(&"6<5 read log".to_owned()));
    // Neither changes `k`, but `f` did.
    assert_eq!(graph.overlaps(), [[4, 5]]);
}

#[test]
fn calling_into_an_imported_module_changes_nothing_that_is_carried() {
    let graph = of(&[
        "import m\nfrom n import s\ndef f():\n    m.g()\ndef h():\n    global s\n    s = 1",
        "#| target: a\nm.x()\nf()",
        "#| target: b\ns.x = 1\nm.x()",
        "#| target: a\nh()\ns.x()",
        "m = 1",
        "#| target: c\nm.x()",
    ]);
    let writes = |cell: usize| graph.access(cell).unwrap().writes.clone();
    assert_eq!([writes(1), writes(2)], [names(""), names("")]);
    assert_eq!([writes(3), writes(5)], [names("s"), names("m")]);
    assert_eq!(graph.overlaps(), [[1, 2, 3]]);
}

#[test]
fn functions_in_blocks_and_magics_count_as_what_stood_before_them_or_themselves() {
    let graph = of(&[
        "def f(): return a",
        "if c:\n    def f(): return b",
        "%%time\ndef g():\n    global b\n    b = f()",
        "#| target: x\ng()",
        "#| target: y\nh = f\nprint(h())",
    ]);
    let access = |cell: usize| graph.access(cell).unwrap();
    assert_eq!(access(3).reads, names("a b f g"));
    assert_eq!(access(3).writes, names("b"));
    assert!(access(4).reads.contains("a"));
    assert!(graph.overlaps().is_empty());
}

#[test]
fn metadata_adds_to_the_source_or_overrules_it() {
    let graph = of(&[
        "x = y = z = 1",
        "#| in: [x]\n#| autoin: false\nprint(y)",
        "#| out: [z]\nf(w)",
        "#| target: a\nz",
    ]);
    assert_eq!(graph.access(1).unwrap().reads, names("x"));
    assert_eq!(edges(&graph), ["1<0 read x", "2<0 order z", "3<2 read z"]);
}

#[test]
fn the_last_result_may_come_from_any_cell() {
    assert!(of(&["1", "_"]).access(1).unwrap().dynamic);
    assert!(of(&["1", "Out[1] + _1"]).access(1).unwrap().dynamic);
    assert!(!of(&["for _ in []: pass", "_"]).access(1).unwrap().dynamic);
    assert!(!of(&["_x1 = 1", "_x1"]).access(1).unwrap().dynamic);
}

#[test]
fn ten_thousand_cells_take_no_time() {
    for sources in [
        ["x = f(x)", "#| target: a\ny = x", "def f(a): return a + k"],
        ["exec(c)", "#| target: a\ny", "#| target: a\nz"],
        ["import np", "#| target: a\nnp", "print(np)"],
    ] {
        let cells: Vec<&str> = sources.into_iter().cycle().take(10_000).collect();
        let analyses: Vec<_> = cells.iter().map(|source| python::analyse(source)).collect();
        let workflow = cell::Workflow::default();
        let began = std::time::Instant::now();
        let (mut graph, mut accesses) = (Graph::new(), Accesses::default());
        for (source, analysis) in cells.iter().zip(&analyses) {
            let workflow = source.starts_with('#').then_some(&workflow);
            graph.add(accesses.next(analysis, workflow));
        }
        assert_eq!(graph.rounds().len(), 10_000);
        assert!(graph.edges().count() < 60_000);
        assert!(began.elapsed().as_secs_f64() < 1.0, "{:?}", began.elapsed());
    }
}

fn any_access() -> impl Strategy<Value = Access> {
    let some = || {
        prop::collection::btree_set(prop::sample::select(vec!["a", "b", "c", "d"]), 0..3).prop_map(
            |names| {
                names
                    .into_iter()
                    .map(Name::from)
                    .collect::<BTreeSet<Name>>()
            },
        )
    };
    let after = prop::collection::vec(0..12usize, 0..2);
    let rarely = prop::bool::weighted(0.08);
    let often = prop::bool::weighted(0.8);
    (some(), some(), often, rarely, after).prop_map(|(reads, writes, is_step, dynamic, after)| {
        Access {
            reads,
            writes,
            is_step,
            dynamic,
            after,
        }
    })
}

/// Whether two cells must keep their order, for a reason of their own.
fn conflict(cells: &[Access], earlier: usize, later: usize) -> bool {
    let (one, other) = (&cells[earlier], &cells[later]);
    one.dynamic
        || other.dynamic
        || !one.is_step && !other.is_step
        || other.after.contains(&earlier)
        || !one.writes.is_disjoint(&other.reads)
        || !one.writes.is_disjoint(&other.writes)
        || !one.reads.is_disjoint(&other.writes)
}

/// Whether the later cell cannot run at the same time as the earlier one, for a reason of its own.
fn waits(cells: &[Access], earlier: usize, later: usize) -> bool {
    let (one, other) = (&cells[earlier], &cells[later]);
    let writer = |name: &Name| {
        let writes = |cell: &usize| cells[*cell].writes.contains(name);
        (0..later).rev().find(writes) == Some(earlier)
    };
    one.dynamic
        || other.dynamic
        || !other.is_step
        || other.after.contains(&earlier)
        || other.reads.iter().any(writer)
}

/// Which cells each one comes after, by any path.
fn closed(count: usize, direct: impl Fn(usize, usize) -> bool) -> Vec<BTreeSet<usize>> {
    let mut all: Vec<BTreeSet<usize>> = Vec::new();
    for later in 0..count {
        let mut before = BTreeSet::new();
        for earlier in (0..later).filter(|earlier| direct(*earlier, later)) {
            before.insert(earlier);
            before.extend(&all[earlier]);
        }
        all.push(before);
    }
    all
}

proptest! {
    #[test]
    fn paths_join_just_the_cells_that_conflict(cells in prop::collection::vec(any_access(), 0..14)) {
        let mut graph = Graph::new();
        for cell in &cells {
            graph.add(cell.clone());
        }
        let direct: BTreeSet<(usize, usize)> = graph.edges().map(|edge| (edge.from, edge.to)).collect();
        prop_assert!(direct.iter().all(|(from, to)| from < to));
        prop_assert_eq!(direct.len(), graph.edges().count());
        let found = closed(cells.len(), |from, to| direct.contains(&(from, to)));
        prop_assert_eq!(&found, &closed(cells.len(), |from, to| conflict(&cells, from, to)));

        // Reads lead to the last writer, and to nobody else.
        for (later, cell) in cells.iter().enumerate() {
            for name in &cell.reads {
                let writer = (0..later).rev().find(|earlier| cells[*earlier].writes.contains(name));
                let reason = Reason::Read(name.clone());
                let edges = graph.before(later);
                let from: Vec<usize> = edges.iter().filter(|edge| edge.reasons.contains(&reason)).map(|edge| edge.from).collect();
                prop_assert_eq!(from, writer.into_iter().collect::<Vec<_>>());
            }
        }
        for edge in graph.edges() {
            prop_assert!(!edge.reasons.is_empty());
        }
        let waited = closed(cells.len(), |from, to| waits(&cells, from, to));
        for group in graph.overlaps() {
            for (place, later) in group.iter().enumerate() {
                prop_assert!(group[..place].iter().all(|earlier| !waited[*later].contains(earlier)));
            }
        }
    }
}
