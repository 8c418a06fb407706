//! The analysis against three judges: CPython's own bytecode and symbol table (`oracle.py`), over
//! the standard library; generated cells that CPython runs (`played.py`); and a table of sources
//! with what must be found in them (`expectations.txt`).

#![allow(clippy::unwrap_used)] // In a test a panic is the report.

use std::collections::BTreeSet;
use std::process::Command;

use cellferry::analysis::python::analyse;
use cellferry::analysis::{Analysis, Read};
use serde_json::Value;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/analysis");

/// Files of the standard library to compare; `CELLFERRY_ANALYSIS_FILES` sets another number.
const FILES: &str = "80";

/// Seeds of generated cells to play; `CELLFERRY_ANALYSIS_CELLS` sets another number.
const CELLS: &str = "400";

type Names = BTreeSet<String>;

fn names<'a>(names: impl IntoIterator<Item = &'a cellferry::name::Name>) -> Names {
    names.into_iter().map(|name| name.to_string()).collect()
}

fn listed(value: &Value) -> Names {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// What CPython found and the analysis did not.
fn missing(verdict: &Value, analysis: &Analysis) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |what: &str, expected: &Names, found: &Names| {
        let absent: Vec<_> = expected.difference(found).cloned().collect();
        if !absent.is_empty() {
            faults.push(format!("{what}: {}", absent.join(" ")));
        }
    };
    let now: Names = analysis
        .reads
        .iter()
        .filter(|(_, how)| **how != Read::Deferred)
        .map(|(name, _)| name.to_string())
        .collect();
    let star = analysis.dynamic.is_some();
    let writes = names(&analysis.writes);
    check("read at once", &listed(&verdict["reads_now"]), &now);
    check("bound", &listed(&verdict["writes"]), &writes);
    check(
        "deleted",
        &listed(&verdict["deletes"]),
        &names(&analysis.deletes),
    );
    let mut known = &names(analysis.reads.keys()) | &writes;
    let mut changes = &writes | &names(&analysis.deletes);
    for definition in &analysis.definitions {
        known.extend(names(&definition.needs_now));
        known.extend(names(&definition.needs_later));
        changes.extend(names(&definition.changes_later));
    }
    check("read later", &listed(&verdict["reads_later"]), &known);
    if !star {
        check(
            "changed later",
            &listed(&verdict["changes_later"]),
            &changes,
        );
    }
    for expected in verdict["definitions"].as_array().into_iter().flatten() {
        let name = expected["name"].as_str().unwrap_or_default();
        let line = expected["line"].as_u64();
        let found = analysis.definitions.iter().find(|definition| {
            Some(u64::from(definition.line)) == line
                && definition.binds.iter().any(|bound| bound.as_str() == name)
        });
        // One that the cell itself overwrites may be left out.
        let Some(found) = found else { continue };
        let later = &names(&found.needs_later) | &names(&found.needs_now);
        let later_and_own = &later | &Names::from([name.to_owned()]);
        check(
            &format!("`{name}` needs now"),
            &listed(&expected["now"]),
            &names(&found.needs_now),
        );
        check(
            &format!("`{name}` needs later"),
            &listed(&expected["later"]),
            &later_and_own,
        );
        check(
            &format!("`{name}` changes later"),
            &listed(&expected["changes_later"]),
            &names(&found.changes_later),
        );
    }
    faults
}

/// What a script of this folder prints.
fn python(script: &str, arguments: [&str; 2]) -> String {
    let output = Command::new("python3")
        .arg(format!("{HERE}/{script}"))
        .args(arguments)
        .output()
        .expect("`python3` is needed on PATH");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nothing_that_cpython_sees_is_missing() {
    let files = std::env::var("CELLFERRY_ANALYSIS_FILES").unwrap_or_else(|_| FILES.to_owned());
    let told = python("oracle.py", ["--corpus", &files]);
    let (mut compared, mut faults) = (0, Vec::new());
    let (mut reads, mut extra, mut overclaimed) = (0, 0, 0);
    for line in told.lines() {
        let item: Value = serde_json::from_str(line).expect("the oracle writes JSON");
        let verdict = &item["verdict"];
        if verdict.get("skip").is_some() {
            continue;
        }
        let analysis = analyse(item["source"].as_str().unwrap_or_default());
        let label = item["label"].as_str().unwrap_or_default();
        compared += 1;
        if !analysis.parsed {
            faults.push(format!("{label}: did not parse"));
            continue;
        }
        faults.extend(
            missing(verdict, &analysis)
                .iter()
                .map(|fault| format!("{label}: {fault}")),
        );
        let expected = listed(&verdict["reads_now"]);
        let surely = listed(&verdict["surely"]);
        for (name, how) in analysis
            .reads
            .iter()
            .filter(|(_, how)| **how != Read::Deferred)
        {
            reads += 1;
            extra += usize::from(!expected.contains(name.as_str()));
            overclaimed += usize::from(
                *how == Read::Surely
                    && !verdict["surely"].is_null()
                    && !surely.contains(name.as_str()),
            );
        }
    }
    println!(
        "{compared} sources: {reads} names read at once, {extra} of them more than CPython's, \
         {overclaimed} called sure that a path avoids"
    );
    assert!(compared > 100, "only {compared} sources");
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn nothing_that_a_run_shows_is_missing() {
    let cells = std::env::var("CELLFERRY_ANALYSIS_CELLS").unwrap_or_else(|_| CELLS.to_owned());
    let told = python("played.py", ["0", &cells]);
    let (mut compared, mut faults) = (0, Vec::new());
    for line in told.lines() {
        let item: Value = serde_json::from_str(line).expect("the player writes JSON");
        let source = item["source"].as_str().unwrap_or_default();
        let analysis = analyse(source);
        compared += 1;
        let reads = analysis.reads.iter();
        let now = reads.filter(|(_, how)| **how != Read::Deferred);
        // What the cell itself deletes is no longer the notebook's, but may be asked for.
        let known = &names(now.map(|(name, _)| name)) | &names(&analysis.deletes);
        for (what, expected, found) in [
            ("read", &item["reads"], known),
            ("bound", &item["writes"], names(&analysis.writes)),
        ] {
            let absent: Vec<_> = listed(expected).difference(&found).cloned().collect();
            if !absent.is_empty() {
                faults.push(format!("{what}: {}\n{source}", absent.join(" ")));
            }
        }
    }
    assert!(compared > 100, "only {compared} cells");
    assert!(
        faults.is_empty(),
        "{} of {compared}:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// A result in the notation of `expectations.txt`.
fn spelled(analysis: &Analysis) -> String {
    let mark = |how: &Read| match how {
        Read::Surely => "",
        Read::Maybe => "?",
        Read::Deferred => "~",
    };
    let join = |names: Names| names.into_iter().collect::<Vec<_>>().join(" ");
    let reads = analysis
        .reads
        .iter()
        .map(|(name, how)| format!("{name}{}", mark(how)));
    let mut lines = vec![
        ("reads", reads.collect::<Vec<_>>().join(" ")),
        ("writes", join(names(&analysis.writes))),
        ("deletes", join(names(&analysis.deletes))),
        ("mutates", join(names(&analysis.mutates))),
        (
            "dynamic",
            analysis
                .dynamic
                .map_or(String::new(), |why| format!("{why:?}")),
        ),
    ];
    if !analysis.parsed {
        lines.push(("parsed", "no".to_owned()));
    }
    for definition in &analysis.definitions {
        let mut line = format!("{:?} {}", definition.kind, definition.line);
        for (what, set) in [
            ("now", names(&definition.needs_now)),
            ("later", names(&definition.needs_later)),
            ("changes", names(&definition.changes_later)),
        ] {
            if !set.is_empty() {
                line += &format!("; {what} {}", join(set));
            }
        }
        if definition.dynamic_later.is_some() {
            line += "; dynamic";
        }
        lines.push(("defines", line));
    }
    let lines = lines.iter().filter(|(_, text)| !text.is_empty());
    lines
        .map(|(key, text)| format!("{key}: {text}\n"))
        .collect()
}

#[test]
fn the_table_of_expectations_holds() {
    let table = include_str!("expectations.txt");
    let mut faults = Vec::new();
    let mut count = 0;
    for entry in table.split("\n=== ").skip(1) {
        let (title, rest) = entry.split_once('\n').expect("a title line");
        let (source, expected) = rest.split_once("\n---\n").expect("a line `---`");
        let expected = format!("{}\n", expected.trim_end());
        let found = spelled(&analyse(source));
        count += 1;
        if found.trim_end() != expected.trim_end() {
            faults.push(format!(
                "=== {title}\n{source}\n--- expected\n{expected}--- found\n{found}"
            ));
        }
    }
    assert!(count > 50, "only {count} entries");
    assert!(
        faults.is_empty(),
        "{} of {count}:\n{}",
        faults.len(),
        faults.join("\n")
    );
}
