//! What is read of a file, and what is said of what is wrong in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, FILE, Place, Ssh, Targets};

fn targets(text: &str) -> Result<Targets, ConfigError> {
    let mut targets = Targets::default();
    targets.add(Path::new("/n/cellferry.toml"), text)?;
    Ok(targets)
}

fn problem(text: &str, name: &str) -> String {
    targets(text)
        .and_then(|targets| targets.get(name))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_local_target_is_read_with_paths_relative_to_its_file() {
    let text =
        "[targets.lab]\ntype='local'\npython='env/bin/python'\nworkdir='w'\nworkers=3\nenv={A='1'}";
    let lab = targets(text).unwrap().get("lab").unwrap();
    assert_eq!(lab.python.as_deref(), Some("/n/env/bin/python"));
    assert_eq!(lab.workdir, Some(PathBuf::from("/n/w")));
    assert_eq!((lab.workers.get(), lab.env["A"].as_str()), (3, "1"));
    let plain = targets("[targets.lab]\ntype='local'\npython='python3.12'")
        .unwrap()
        .get("lab")
        .unwrap();
    assert_eq!(plain.python.as_deref(), Some("python3.12"));
}

#[test]
fn an_ssh_target_leaves_to_ssh_what_it_does_not_say() {
    let text = "[targets.lab]\ntype='ssh'\nhost='me@lab:2222'\npython='env/bin/python'\nworkdir='w'\npatience='10m'\n\
                transport='openssh'\nssh_config='config'\nsetup='module load python'";
    let lab = targets(text).unwrap().get("lab").unwrap();
    assert_eq!(lab.python.as_deref(), Some("env/bin/python"));
    assert_eq!(lab.workdir, Some(PathBuf::from("w")));
    assert_eq!(lab.setup.as_deref(), Some("module load python"));
    let Place::Ssh(ssh) = lab.place else {
        panic!("not ssh")
    };
    assert_eq!((ssh.host.as_str(), ssh.openssh), ("me@lab:2222", true));
    assert_eq!(ssh.patience, Duration::from_secs(600));
    assert_eq!(ssh.config, Some(PathBuf::from("/n/config")));
}

#[test]
fn a_host_of_the_ssh_configuration_needs_no_definition() {
    let lab = Targets::default().get("ssh:lab").unwrap();
    assert_eq!(
        (lab.name.as_str(), &lab.place),
        ("ssh:lab", &Place::Ssh(Ssh::alias("lab")))
    );
}

#[test]
fn home_is_always_there() {
    assert_eq!(Targets::default().get("home").unwrap().name, "home");
    let home = targets("[targets.home]\npython='/p'")
        .unwrap()
        .get("home")
        .unwrap();
    assert_eq!(home.python.as_deref(), Some("/p"));
}

#[test]
fn what_is_wrong_is_named_with_the_nearest_word() {
    let good = "[targets.lab]\ntype='local'\n";
    let cases = [
        (good, "lap", "did you mean `lab`"),
        ("[targets.lab]\ntype='lokal'", "lab", "did you mean `local`"),
        (
            "[targets.lab]\ntype='local'\nworkerz=2",
            "lab",
            "`targets.lab.workerz` in `/n/cellferry.toml`, line 3: unknown key; did you mean `workers`",
        ),
        (
            "[targets.lab]\ntype='local'\nworkers=0",
            "lab",
            "at least 1",
        ),
        (
            "[targets.lab]\ntype='local'\nworkers='2'",
            "lab",
            "whole number",
        ),
        (
            "[targets.lab]\ntype='local'\nenv={A=1}",
            "lab",
            "targets.lab.env.A",
        ),
        (
            "[targets.lab]\ntype='kubernetes'",
            "lab",
            "not supported yet",
        ),
        (
            "[targets.lab]\ntype='ssh'",
            "lab",
            "targets.lab.host` in `/n/cellferry.toml`, line 1: is missing",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='-oProxyCommand=x'",
            "lab",
            "is no host",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='x'\nport=0",
            "lab",
            "from 1 to 65535",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='x'\npatience='soon'",
            "lab",
            "line 4: `soon` is no time",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='x'\npatience=5",
            "lab",
            "a time in quotes",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='x'\ntransport='opensh'",
            "lab",
            "did you mean `openssh`",
        ),
        (
            "[targets.lab]\ntype='ssh'\nhost='x'\npython='p'\nconda='c'",
            "lab",
            "cannot stand beside",
        ),
        (
            "[targets.home]\ntype='ssh'\nhost='x'",
            "home",
            "another name",
        ),
        ("[targets.lab]\nhost='x'", "lab", "is missing"),
        ("targets=3", "lab", "must be a table"),
        ("[target.lab]\n", "lab", "did you mean `targets`"),
        ("[targets.lab\n", "lab", "line 1"),
        (good, "ssh:", "after `ssh:` comes an alias"),
    ];
    for (text, name, expected) in cases {
        let found = problem(text, name);
        assert!(found.contains(expected), "{text:?}: {found}");
    }
}

#[test]
fn what_targets_share_is_read() {
    let good = "[targets.lab]\ntype='local'\n";
    let shared = |text: &str| targets(&format!("{good}{text}")).and_then(|all| all.shared());
    let both = shared(
        "[[shared]]\npath='/data'\ntargets=['home','lab']\n[[shared]]\npaths={home='/mnt/s', lab='/s'}",
    );
    let same = |here: &str, there: &str| {
        both.as_ref()
            .unwrap()
            .same(("home", Path::new(here)), ("lab", Path::new(there)))
    };
    assert!(same("/data/x", "/data/x") && same("/mnt/s/x", "/s/x") && !same("/s/x", "/s/x"));
    for (text, expected) in [
        (
            "[[shared]]\npath='/d'\ntargets=['home','lap']",
            "`shared[0].targets` in `/n/cellferry.toml`, line 5: no target `lap`; did you mean `lab`",
        ),
        (
            "[[shared]]\npath='/d'\ntargets=['home','lab']\n[[shared]]\npat='/d'",
            "`shared[1].pat` in `/n/cellferry.toml`, line 7: unknown key; did you mean `path`",
        ),
        (
            "[[shared]]\npath='d'\ntargets=['home','lab']",
            "must be an absolute path",
        ),
        (
            "[[shared]]\npath='/d'\ntargets='lab'",
            "must be a list of names",
        ),
        (
            "[[shared]]\npath='/d'\ntargets=['lab']",
            "two targets at least",
        ),
        (
            "[[shared]]\npaths={home=1,lab='/d'}",
            "`shared[0].paths.home`",
        ),
        ("[[shared]]\npaths='/d'", "must be a table"),
        ("[[shared]]\npath='/d'", "must have `path` and `targets`"),
    ] {
        let found = shared(text).unwrap_err().to_string();
        assert!(found.contains(expected), "{text}: {found}");
        // Cells that bring no files do not care.
        assert!(
            targets(&format!("{good}{text}"))
                .unwrap()
                .get("lab")
                .is_ok()
        );
    }
    let found = targets("shared='/d'").unwrap_err().to_string();
    assert!(found.contains("write [[shared]]"), "{found}");
}

#[test]
fn faults_name_their_line() {
    let dotted = "# x\n[targets]\n'a.b' = {type = 'local',\n  env = {X = 1}}\na = {type = 'local'}";
    assert!(problem(dotted, "a.b").contains("`targets.a.b.env.X` in `/n/cellferry.toml`, line 4:"));
    assert!(problem("\n[targets.lab]\nhost='x'", "lab").contains("line 2: is missing"));
    assert!(problem("\n\ntarget=3", "lab").contains("line 3: unknown key"));
    assert!(
        problem("[targets.a]\ntype='local'\nenv={'A=B'='1'}", "a").contains("cannot be a variable")
    );
}

#[test]
fn a_notebooks_deployments_give_way_to_the_files() {
    let mut all = targets("[targets.lab]\ntype='local'\nworkers=2").unwrap();
    let given = serde_json::json!({
        "lab": {"type": "local", "config": {}}, "home": {"type": "nonsense"},
        "near": {"type": "local", "config": {}, "external": false, "workdir": "w"},
        "far": {"type": "slurm", "config": {"hostname": "h"}}, "odd": {"type": "local", "workdirr": "w"}, "none": 3,
    });
    all.add_deployments(Path::new("/n/a.ipynb"), given.as_object().unwrap());
    assert_eq!(all.get("lab").unwrap().workers.get(), 2);
    assert_eq!(all.get("home").unwrap().defined_in, None);
    let near = all.get("near").unwrap();
    assert_eq!(near.workdir, Some(PathBuf::from("/n/w")));
    assert_eq!(near.defined_in, Some(PathBuf::from("/n/a.ipynb")));
    for (name, expected) in [
        (
            "far",
            "`workflow.deployments.far.type` in `/n/a.ipynb`: deployments of type `slurm` are not supported yet",
        ),
        (
            "odd",
            "`workflow.deployments.odd.workdirr` in `/n/a.ipynb`: unknown key; did you mean `workdir`",
        ),
        ("none", "must be an object"),
    ] {
        let found = all.get(name).unwrap_err().to_string();
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_bad_target_harms_no_other() {
    let both = targets("[targets.a]\ntype='nonsense'\n[targets.b]\ntype='local'").unwrap();
    assert!(both.get("a").is_err());
    assert!(both.get("b").is_ok());
}

#[test]
fn the_nearest_file_wins() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("a/b");
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::write(
        folder.path().join(FILE),
        "[targets.x]\ntype='local'\nworkers=1\n[targets.y]\ntype='local'",
    )
    .unwrap();
    std::fs::write(inner.join(FILE), "[targets.x]\ntype='local'\nworkers=5").unwrap();
    let targets = Targets::load(&inner, None).unwrap();
    assert_eq!(targets.get("x").unwrap().workers.get(), 5);
    assert!(targets.get("y").is_ok());
}
