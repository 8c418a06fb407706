use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn cell(source: &str, target: &str) -> FileCell {
    FileCell {
        id: None,
        source: source.to_owned(),
        metadata: json!({"workflow": {"target": target}}),
    }
}

fn find<'a>(matcher: &'a mut Matcher, source: &str) -> Option<&'a str> {
    matcher
        .find(None, source)
        .and_then(|cell| cell.metadata["workflow"]["target"].as_str())
}

#[test]
fn equal_cells_are_told_apart_by_their_position() {
    let mut matcher = Matcher::default();
    matcher.replace(vec![
        cell("f()", "a"),
        cell("", "x"),
        cell("f()", "b"),
        cell("g()", "c"),
        cell("f()", "d"),
    ]);
    assert_eq!(find(&mut matcher, "# Parameters\nx = 1"), None);
    for (source, target) in [("f()", "a"), ("f()", "b"), ("g()", "c"), ("f()", "d")] {
        assert_eq!(find(&mut matcher, source), Some(target));
    }
    // Now the position says nothing, and a guess would be wrong.
    assert_eq!(find(&mut matcher, "f()"), None);
    assert_eq!(find(&mut matcher, "g()"), Some("c"));
    assert_eq!(find(&mut matcher, "f()"), Some("d"));
}

#[test]
fn an_id_decides_unless_the_source_has_changed() {
    let mut matcher = Matcher::default();
    let with_id = |id: &str, source: &str, target: &str| FileCell {
        id: Some(id.to_owned()),
        ..cell(source, target)
    };
    matcher.replace(vec![with_id("1", "f()", "a"), with_id("2", "f()", "b")]);
    assert_eq!(
        matcher.find(Some("2"), "f()").map(|cell| &cell.metadata),
        Some(&json!({"workflow": {"target": "b"}}))
    );
    assert_eq!(matcher.find(Some("2"), "edited()"), None);
}

fn arguments(line: &str) -> Parent {
    Parent {
        arguments: line.split_whitespace().map(str::to_owned).collect(),
        directory: PathBuf::new(),
    }
}

#[test]
fn the_file_is_read_off_the_command_line_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.ipynb", "b.ipynb", "v.ipynb"] {
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    let locate_in = |line: &str| {
        let parent = Parent {
            directory: folder.path().to_owned(),
            ..arguments(line)
        };
        locate(&|_| None, None, Some(&parent)).map(|found| {
            found
                .path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
    };
    let cases = [
        (
            "/e/bin/python3 /e/bin/jupyter-nbconvert --to notebook --execute a.ipynb",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter nbconvert --execute --output v.ipynb a.ipynb --to html",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter-nbconvert --execute --inplace a",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter-nbconvert --execute a.ipynb b.ipynb",
            None,
        ),
        (
            "/e/bin/python -m nbconvert --execute a.ipynb",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter-execute b.ipynb",
            Some("b.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter execute --inplace b.ipynb",
            Some("b.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/jupyter-nbconvert --log-level WARN --execute a.ipynb",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/papermill a.ipynb b.ipynb -p x v.ipynb",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python /e/bin/papermill -p x v.ipynb -k cellferry a.ipynb b.ipynb",
            Some("a.ipynb"),
        ),
        (
            "/e/bin/python -m papermill --log-output a.ipynb b.ipynb",
            Some("a.ipynb"),
        ),
        ("/e/bin/python /e/bin/papermill - b.ipynb", None),
        ("/e/bin/python /e/bin/jupyter-lab a.ipynb", None),
        ("/e/bin/python my_script.py a.ipynb", None),
        (
            "/e/bin/python /e/bin/jupyter-nbconvert --execute missing.ipynb",
            None,
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(locate_in(line).as_deref(), expected, "{line}");
    }
}

#[test]
fn what_the_client_tells_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("n.ipynb");
    std::fs::write(&file, "{}").unwrap();
    let told = file.display().to_string();
    let environment: HashMap<&str, String> = HashMap::from([("JPY_SESSION_NAME", told.clone())]);
    assert_eq!(
        locate(&|name| environment.get(name).cloned(), None, None),
        Some(Located {
            path: file.clone(),
            in_order: false
        })
    );
    assert_eq!(
        locate(&|_| None, Some(&told), None).map(|found| found.path),
        Some(file)
    );
    assert_eq!(locate(&|_| None, Some("relative.ipynb"), None), None);
    assert_eq!(
        locate(
            &|name| (name == "CELLFERRY_NOTEBOOK").then(|| "/x.ipynb".to_owned()),
            None,
            None
        ),
        Some(Located {
            path: PathBuf::from("/x.ipynb"),
            in_order: true
        })
    );
}

#[test]
fn a_batch_client_started_from_a_cell_does_not_run_that_cells_notebook() {
    let folder = tempfile::tempdir().unwrap();
    let outer = folder.path().join("outer.ipynb");
    let inner = folder.path().join("inner.ipynb");
    for file in [&outer, &inner] {
        std::fs::write(file, "{}").unwrap();
    }
    let inherited = outer.display().to_string();
    let environment = |name: &str| (name == "JPY_SESSION_NAME").then(|| inherited.clone());
    let started = |line: &str| {
        let parent = Parent {
            directory: folder.path().to_owned(),
            ..arguments(line)
        };
        locate(&environment, Some(&inherited), Some(&parent)).map(|found| found.path)
    };
    assert_eq!(
        started("jupyter-nbconvert --execute inner.ipynb"),
        Some(inner)
    );
    assert_eq!(started("jupyter-nbconvert --execute --stdin"), None);
    assert_eq!(started("python jupyter-lab"), Some(outer));
}

#[test]
fn cells_that_a_client_leaves_out_do_not_lose_the_position() {
    let tagged = |source: &str, target: &str, tag: &str| FileCell {
        metadata: json!({"workflow": {"target": target}, "tags": [tag]}),
        ..cell(source, target)
    };
    // papermill puts new parameters in the place of the old ones.
    let mut matcher = Matcher::default();
    matcher.replace(vec![
        tagged("# Parameters\nx = 1", "p", "injected-parameters"),
        cell("f()", "a"),
        cell("f()", "b"),
    ]);
    assert_eq!(find(&mut matcher, "# Parameters\nx = 2"), None);
    assert_eq!(find(&mut matcher, "f()"), Some("a"));
    assert_eq!(find(&mut matcher, "f()"), Some("b"));
    // nbclient leaves out what is tagged so.
    let skipping = vec![
        tagged("g()", "s", "skip-execution"),
        cell("f()", "a"),
        cell("f()", "b"),
    ];
    matcher = Matcher::default();
    matcher.replace(skipping);
    assert_eq!(find(&mut matcher, "f()"), Some("a"));
    assert_eq!(find(&mut matcher, "f()"), Some("b"));
    // Whether it was left out cannot be told here.
    matcher = Matcher::default();
    matcher.replace(vec![tagged("f()", "s", "skip-execution"), cell("f()", "a")]);
    assert_eq!(find(&mut matcher, "f()"), None);
}

#[test]
fn a_notebooks_own_deployments_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n.ipynb");
    let read = |metadata: Value| {
        let text = json!({"nbformat": 4, "cells": [], "metadata": metadata});
        std::fs::write(&path, text.to_string()).unwrap();
        deployments(&path)
    };
    let given = read(json!({"workflow": {"deployments": {"near": {"type": "local"}}}})).unwrap();
    assert_eq!(given["near"]["type"], "local");
    for without in [
        json!(null),
        json!(3),
        json!({"workflow": 3}),
        json!({"workflow": {}}),
    ] {
        assert!(read(without).unwrap().is_empty());
    }
    let wrong = read(json!({"workflow": {"deployments": []}})).unwrap_err();
    assert!(wrong.to_string().contains("not an object"));
    assert!(
        deployments(folder.path())
            .unwrap_err()
            .to_string()
            .contains("not a file")
    );
}

#[test]
fn the_file_is_read_again_when_it_changes_and_faults_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n.ipynb");
    let write = |target: &str, pad: &str| {
        let text = json!({"nbformat": 4, "cells": [
            {"cell_type": "markdown", "source": "x"},
            {"cell_type": "code", "source": ["a\n", "b"], "metadata": {"t": target}},
        ], "metadata": {"pad": pad}});
        std::fs::write(&path, text.to_string()).unwrap();
    };
    let mut notebook = Notebook::new(path.clone(), true);
    assert!(
        notebook
            .cell_of(None, "a")
            .unwrap_err()
            .to_string()
            .contains("cannot read")
    );
    write("one", "");
    assert_eq!(
        notebook.cell_of(None, "a\nb").unwrap().unwrap().metadata,
        json!({"t": "one"})
    );
    write("two", "longer");
    assert_eq!(
        notebook.cell_of(None, "a\nb").unwrap().unwrap().metadata,
        json!({"t": "two"})
    );
    std::fs::write(&path, "{\"nbformat\": 3}").unwrap();
    assert!(
        notebook
            .cell_of(None, "a")
            .unwrap_err()
            .to_string()
            .contains("nbformat is 3")
    );
    std::fs::write(&path, "{\"cells\": [").unwrap();
    assert!(
        notebook
            .cell_of(None, "a")
            .unwrap_err()
            .to_string()
            .contains("not a notebook")
    );
}

proptest! {
    #[test]
    fn a_run_through_matches_every_cell(sources in prop::collection::vec("[a-c]{0,2}", 0..12), injected in 0usize..12) {
        let cells: Vec<FileCell> =
            sources.iter().enumerate().map(|(index, source)| cell(source, &index.to_string())).collect();
        let mut matcher = Matcher::default();
        matcher.replace(cells);
        for (index, source) in sources.iter().enumerate().filter(|(_, source)| !source.trim().is_empty()) {
            if index == injected {
                prop_assert_eq!(find(&mut matcher, "# Parameters\nx = 1"), None);
            }
            let expected = index.to_string();
            prop_assert_eq!(find(&mut matcher, source), Some(expected.as_str()));
        }
    }

    #[test]
    fn a_cell_with_other_source_is_never_returned(sources in prop::collection::vec("[ab]{0,2}", 0..6), runs in prop::collection::vec("[ab]{0,2}", 0..12)) {
        let mut matcher = Matcher::default();
        matcher.replace(sources.iter().map(|source| cell(source, source)).collect());
        for run in &runs {
            if let Some(found) = find(&mut matcher, run) {
                prop_assert_eq!(found, run);
            }
        }
    }
}
