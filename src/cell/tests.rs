use proptest::prelude::*;
use serde_json::json;

use super::*;

fn errors(workflow: Value, source: &str) -> String {
    report(&resolve(&json!({ "workflow": workflow }), source, "#").expect_err("it was accepted"))
}

fn good(metadata: &Value, source: &str) -> Workflow {
    resolve(metadata, source, "#")
        .expect("it was refused")
        .expect("there was none")
}

fn target_of(metadata: &Value, source: &str) -> Option<String> {
    good(metadata, source)
        .target
        .map(|target| target.name().to_owned())
}

#[test]
fn a_cell_without_metadata_is_no_step() {
    for metadata in [
        json!({}),
        json!({"tags": ["a"], "collapsed": true}),
        json!({"workflow": null}),
        Value::Null,
    ] {
        assert_eq!(resolve(&metadata, "x = 1\n#| target: lab", "#"), Ok(None));
    }
    assert_eq!(
        resolve(&json!({}), "#| echo: false\n#| label: fig-1\nx", "#"),
        Ok(None)
    );
}

#[test]
fn both_places_are_read_and_the_source_wins() {
    let both = json!({"workflow": {"target": "a", "step": {"in": ["x"], "autoin": false}}});
    assert_eq!(target_of(&both, "x"), Some("a".to_owned()));
    let workflow = good(&both, "\n#| target: b\n#| in: [y, z]\n#| echo: true\nx = 1");
    assert_eq!(workflow.target, Some(Target::Name("b".to_owned())));
    let step = workflow.step.unwrap();
    assert_eq!(
        step.inputs,
        ["y", "z"].map(|name| Element::Name(name.to_owned()))
    );
    assert!(!step.autoin);
}

#[test]
fn yaml_may_go_over_several_lines() {
    let source = "#| target:\n#|   deployment: lab\n#| in:\n#|   - x\n#|   - name: y\n#|     type: name\nprint(x)";
    let workflow = good(&json!({}), source);
    assert_eq!(workflow.target.as_ref().map(Target::name), Some("lab"));
    let step = workflow.step.unwrap();
    assert_eq!(
        step.inputs
            .iter()
            .filter_map(Element::variable)
            .collect::<Vec<_>>(),
        ["x", "y"]
    );
}

#[test]
fn notebooks_of_jupyter_workflow_are_accepted_unchanged() {
    let metadata = json!({"workflow": {
        "version": "v1.0",
        "interpreter": "ipython",
        "step": {"autoin": true, "in": [{"name": "x", "type": "name"}, {"name": "go", "type": "control"}], "out": ["y"]},
        "target": {"deployment": "lab", "locations": 1, "service": null},
    }});
    assert_eq!(target_of(&metadata, ""), Some("lab".to_owned()));
    let older = json!({"workflow": {"version": "v1.0", "step": {}, "target": {"model": "lab", "resources": 1}}});
    assert_eq!(target_of(&older, ""), Some("lab".to_owned()));
}

#[test]
fn what_is_wrong_is_named_by_path_with_the_nearest_word() {
    let cases = [
        (
            json!({"targt": "x"}),
            "`workflow.targt`: unknown key; did you mean `target`?",
        ),
        (
            json!({"target": 3}),
            "`workflow.target`: must be the name of a target or an object, not a number",
        ),
        (json!({"target": ""}), "it is empty"),
        (
            json!({"target": {"deploymnt": "x"}}),
            "did you mean `deployment`?",
        ),
        (
            json!({"target": {"locations": 0, "deployment": "x"}}),
            "at least 1",
        ),
        (
            json!({"step": {"in": ["a", {"name": "x", "type": "nam"}]}}),
            "`workflow.step.in[1].type`: unknown type `nam`; did you mean `name`?",
        ),
        (
            json!({"step": {"in": ["not a name"]}}),
            "is not the name of a variable",
        ),
        (
            json!({"step": {"in": [3]}}),
            "`workflow.step.in[0]`: must be a name or an object, not a number",
        ),
        (
            json!({"step": {"out": [{"type": "name"}]}}),
            "must have a `name`",
        ),
        (
            json!({"step": {"out": [{"name": "x", "type": "env"}]}}),
            "unknown type `env`",
        ),
        (
            json!({"step": {"autoin": "yes"}}),
            "`workflow.step.autoin`: must be a boolean, not a string",
        ),
        (
            json!({"step": []}),
            "`workflow.step`: must be an object, not a list",
        ),
        (json!({"after": 1}), "`workflow.after`"),
        (json!({"version": "v2"}), "unknown version `v2`"),
        (json!("lab"), "`workflow`: must be an object, not a string"),
    ];
    for (workflow, expected) in cases {
        let found = errors(workflow.clone(), "");
        assert!(found.contains(expected), "{workflow}: {found}");
    }
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let cases = [
        (json!({"step": {"scatter": "x"}}), "workflow.step.scatter"),
        (
            json!({"step": {"scatter": {"items": ["x"]}}}),
            "workflow.step.scatter",
        ),
        (json!({"cache": true}), "workflow.cache"),
        (json!({"when": "x > 1"}), "workflow.when"),
        (json!({"repeat": {"max": 3}}), "workflow.repeat"),
        (json!({"language": "rust"}), "workflow.language"),
        (
            json!({"step": {"in": [{"name": "x", "type": "file", "serializer": "s"}]}}),
            "workflow.step.in[0].serializer",
        ),
        (
            json!({"step": {"in": [{"name": "x", "type": "env"}]}}),
            "workflow.step.in[0].type",
        ),
        (
            json!({"target": {"deployment": "x", "service": "s"}}),
            "workflow.target.service",
        ),
        (
            json!({"target": {"deployment": "x", "locations": 2}}),
            "workflow.target.locations",
        ),
    ];
    for (workflow, path) in cases {
        let found = errors(workflow.clone(), "");
        assert!(
            found.contains(path) && found.contains("not supported yet"),
            "{workflow}: {found}"
        );
    }
}

#[test]
fn files_have_paths_or_a_variable_that_holds_them() {
    let source = "#| in: [x, {type: file, value: a.csv}, {type: file, name: table, value: ['b/*.csv', ~/c]}]\n\
        #| out: [{type: file, name: plot}, {type: file, name: p, valueFrom: q}]";
    let step = good(&json!({}), source).step.unwrap();
    let Files { inputs, outputs } = step.files();
    let paths: Vec<&[String]> = inputs.iter().map(FileElement::paths).collect();
    assert_eq!(paths, [&["a.csv"][..], &["b/*.csv", "~/c"]]);
    let variables = |files: &[FileElement]| -> Vec<Option<String>> {
        files
            .iter()
            .map(|file| file.variable().map(str::to_owned))
            .collect()
    };
    assert_eq!(variables(&inputs), [None, None]);
    assert_eq!(
        variables(&outputs),
        ["plot", "q"].map(|name| Some(name.to_owned()))
    );
    let names: Vec<_> = step.inputs.iter().filter_map(Element::variable).collect();
    assert_eq!(names, ["x"]);
    for (element, expected) in [
        (json!({}), "`workflow.step.in[0]`: must have a `value`"),
        (
            json!({"value": 3}),
            "must be a path or a list of paths, not a number",
        ),
        (json!({"value": []}), "must not be empty"),
        (
            json!({"value": ["a", "", 3]}),
            "`workflow.step.in[0].value[1]`: must be a path; it is empty",
        ),
        (
            json!({"value": ["a", "", 3]}),
            "`workflow.step.in[0].value[2]`: must be a path, not a number",
        ),
        (json!({"value": ".."}), "must name files or directories"),
        (json!({"value": "~bob/x"}), "only `~/`"),
        (
            json!({"value": "a", "valueFrom": "b"}),
            "`workflow.step.in[0].valueFrom`: cannot stand beside `value`",
        ),
        (json!({"name": "a/b"}), "is not the name of a variable"),
        (
            json!({"value": "a", "vale": "b"}),
            "unknown key; did you mean `value`",
        ),
    ] {
        let mut element = element;
        element["type"] = json!("file");
        let found = errors(json!({"step": {"in": [element.clone()]}}), "");
        assert!(found.contains(expected), "{element}: {found}");
    }
}

#[test]
fn near_misses_in_the_source_are_errors_and_other_tools_keys_are_not() {
    for (line, expected) in [
        ("#| targt: lab", "did you mean `target`?"),
        ("#| Target: lab", "did you mean `target`?"),
        ("#| targets: lab", "did you mean `target`?"),
        ("#| resource: {cpus: 1}", "did you mean `resources`?"),
        ("#| target: [unclosed", "not valid YAML"),
        ("#| target", "must be written"),
        ("#| target: a\n#| target: b", "given twice"),
    ] {
        let found = report(&resolve(&json!({}), line, "#").expect_err(line));
        assert!(found.contains(expected), "{line}: {found}");
    }
    for line in [
        "#| label: x",
        "#| fig-cap: \"A: b\"",
        "#| eval: [broken",
        "#| layout: 3",
        "#|not yaml at all",
    ] {
        assert_eq!(resolve(&json!({}), line, "#"), Ok(None), "{line}");
    }
}

#[test]
fn a_cell_as_jupyter_workflows_client_sends_it_is_accepted() {
    let metadata = json!({"workflow": {
        "version": "v1.0", "interpreter": "ipython", "cell_id": "c1",
        "step": {"autoin": true, "background": false, "out": [],
            "in": [{"name": "a", "type": "name", "valueFrom": "a"}, {"valueFrom": "b"}]},
        "deployments": {"near": {"type": "local", "config": {}}}, "serializers": {},
        "target": {"deployment": "near", "locations": 1, "service": "", "workdir": ""}
    }});
    let workflow = good(&metadata, "");
    let step = workflow.step.unwrap();
    let names: Vec<_> = step.inputs.iter().filter_map(Element::variable).collect();
    assert_eq!(names, ["a", "b"]);
    for refused in [
        json!({"step": {"background": true}}),
        json!({"step": {"workdir": "w"}}),
        json!({"step": {"in": [{"name": "a", "valueFrom": "b"}]}}),
    ] {
        assert!(errors(refused, "").contains("not supported yet"));
    }
}

#[test]
fn option_lines_that_are_nearly_right_are_not_passed_over() {
    for source in [
        "#| target = lab",
        "#| target lab",
        "#| target:lab",
        "#| target:",
        "#| target: null",
        "%%bash\n#| targt: lab",
        "# Train it\n#| targt: lab",
        "#| echo: false\n\n#| targt: lab",
    ] {
        assert!(
            errors(json!({}), source).starts_with("`#| targ"),
            "{source}"
        );
    }
    for source in [
        "%%bash\n#| target: lab",
        "\n# Train it\n#| echo: false\n\n#| 'target': lab\nx = 1",
    ] {
        assert_eq!(
            target_of(&json!({}), source).as_deref(),
            Some("lab"),
            "{source}"
        );
    }
    for source in [
        "x = 1\n#| target: lab",
        "%%bash\nls\n#| target: lab",
        "x = 1\n%%bash\n#| target: lab",
        "#| after all this we look again",
        "#| hide",
    ] {
        assert_eq!(resolve(&json!({}), source, "#"), Ok(None), "{source}");
    }
}

#[test]
fn huge_metadata_is_told_of_shortly_and_soon() {
    let many: Vec<Value> = (0..200_000)
        .map(|number| json!(format!("name{number}")))
        .collect();
    assert!(resolve(&json!({"workflow": {"step": {"in": many}}}), "", "#").is_ok());
    let wrong: Vec<Value> = (0..200_000).map(Value::from).collect();
    let long = "x".repeat(1_000_000);
    let told = errors(
        json!({&long: 1, "version": &long, "language": &long, "step": {"in": [&long, {"name": "a", "type": &long}], "out": wrong}}),
        "",
    );
    assert!(told.len() < 10_000, "{}", told.len());
    assert!(told.ends_with("and more that is wrong"));
}

#[test]
fn all_errors_are_reported_together() {
    let found = errors(
        json!({"targt": 1, "step": {"autoin": 3}, "retry": -1}),
        "#| aftr: x",
    );
    assert_eq!(found.lines().count(), 4, "{found}");
}

#[test]
fn the_published_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metadata.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(path, schema::published()).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        found,
        schema::published(),
        "run this test with UPDATE_SCHEMA=1 and commit docs/metadata.schema.json"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("target".to_owned()),
        Just("step".to_owned()),
        Just("in".to_owned()),
        Just("name".to_owned()),
        Just("deployment".to_owned()),
        Just("type".to_owned()),
        "[a-z]{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn any_files() -> impl Strategy<Value = FileElement> {
    let name = "[a-z_][a-z0-9_]{0,5}";
    let paths = prop_oneof![
        "[a-z*?/]{0,3}[a-z]{1,3}".prop_map(schema::Paths::One),
        prop::collection::vec("[a-z]{1,3}", 1..3).prop_map(schema::Paths::Many),
    ];
    let place = prop_oneof![
        paths.prop_map(|paths| (Some(paths), None)),
        name.prop_map(|variable| (None, Some(variable))),
    ];
    (prop::option::of(name), place).prop_map(|(name, (value, value_from))| FileElement {
        kind: schema::FileType::File,
        name,
        value,
        value_from,
    })
}

fn any_workflow() -> impl Strategy<Value = Workflow> {
    let name = "[a-z_][a-z0-9_]{0,5}";
    let target = prop_oneof![
        name.prop_map(Target::Name),
        name.prop_map(|deployment| Target::Object { deployment }),
    ];
    let kind = prop_oneof![Just(ElementType::Name), Just(ElementType::Control)];
    let element = prop_oneof![
        name.prop_map(Element::Name),
        (name, kind).prop_map(|(name, kind)| Element::Object {
            name,
            kind,
            gather: false
        }),
        any_files().prop_map(Element::File),
    ];
    let step =
        (prop::collection::vec(element, 0..2), any::<bool>()).prop_map(|(inputs, autoin)| Step {
            inputs,
            outputs: Vec::new(),
            autoin,
        });
    (
        prop::option::of(target),
        prop::option::of(step),
        prop::collection::vec("[a-z]{1,5}", 0..3),
    )
        .prop_map(|(target, step, after)| Workflow {
            target,
            step,
            after,
            ..Workflow::default()
        })
}

proptest! {
    #[test]
    fn no_metadata_makes_it_panic(workflow in any_json()) {
        let _ = resolve(&json!({ "workflow": workflow }), "", "#");
    }

    #[test]
    fn no_line_makes_it_panic(line in ".{0,60}", second in ".{0,40}") {
        let _ = resolve(&json!({}), &format!("#| {line}\n#|{second}"), "#");
        let _ = resolve(&json!({}), &format!("#| target: {line}"), "#");
    }

    #[test]
    fn what_the_types_write_the_reader_accepts(workflow in any_workflow()) {
        let written = serde_json::to_value(&workflow).unwrap();
        match resolve(&json!({ "workflow": written }), "", "#") {
            Ok(Some(read)) => prop_assert_eq!(read, workflow),
            Ok(None) => prop_assert!(false, "it was not seen"),
            Err(errors) => prop_assert!(errors.iter().all(|error| error.problem == "given twice"), "{}", report(&errors)),
        }
    }
}
