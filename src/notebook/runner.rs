//! Which notebook a batch client was told to run, read off its command line.
//!
//! Several notebooks, standard input or an option that might be one: no guess.

use std::path::Path;

/// What a command line says about the notebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// It is no batch client.
    NoRunner,
    /// It is one, but which notebook it runs is not clear.
    Unclear,
    /// The argument that names the notebook; nbconvert takes it without `.ipynb` too.
    Notebook(&'a str),
}

/// How a program's options are read.
struct Options {
    /// Options without a value; others without `=` take what follows.
    flags: &'static [&'static str],
    /// Options that take one value, and those that take two, where unknown ones are flags.
    values: Option<(&'static [&'static str], &'static [&'static str])>,
    /// How many notebooks belong on the command line, the first of which is run.
    notebooks: usize,
}

/// nbconvert and nbclient: traitlets applications, whose `--Class.trait value` takes a value.
const TRAITLETS: Options = Options {
    flags: &[
        "--execute",
        "--allow-errors",
        "--stdout",
        "--inplace",
        "--clear-output",
        "--coalesce-streams",
        "--no-prompt",
        "--no-input",
        "--allow-chromium-download",
        "--disable-chromium-sandbox",
        "--show-input",
        "--embed-images",
        "--sanitize-html",
        "--debug",
        "--show-config",
        "--show-config-json",
        "--generate-config",
        "-y",
    ],
    values: None,
    notebooks: 1,
};

const PAPERMILL: Options = Options {
    flags: &[],
    values: Some((
        &[
            "-f",
            "--parameters_file",
            "-y",
            "--parameters_yaml",
            "-b",
            "--parameters_base64",
            "-k",
            "--kernel",
            "-l",
            "--language",
            "--engine",
            "--autosave-cell-every",
            "--cwd",
            "--stdout-file",
            "--stderr-file",
            "--log-level",
            "--start-timeout",
            "--start_timeout",
            "--execution-timeout",
        ],
        &["-p", "--parameters", "-r", "--parameters_raw"],
    )),
    // With one, it may be the output of a notebook that comes through a pipe.
    notebooks: 2,
};

/// Reads a command line, the program first.
pub fn notebook(arguments: &[String]) -> Told<'_> {
    match program(arguments) {
        Some((options, rest)) => match options.notebook(rest) {
            Some(notebook) => Told::Notebook(notebook),
            None => Told::Unclear,
        },
        None => Told::NoRunner,
    }
}

/// The batch client that a command line starts, and the arguments after its name.
fn program(arguments: &[String]) -> Option<(&'static Options, &[String])> {
    let (first, mut rest) = arguments.split_first()?;
    let mut name = file_name(first);
    if name.starts_with("python") || name.starts_with("pypy") {
        (name, rest) = script(rest)?;
    }
    let name = name.strip_suffix(".py").unwrap_or(name);
    let (command, rest) = match (name, rest) {
        ("jupyter", [command, rest @ ..]) => (command.as_str(), rest),
        _ => (name.strip_prefix("jupyter-").unwrap_or(name), rest),
    };
    match command {
        "nbconvert" | "nbconvert.nbconvertapp" | "execute" | "nbclient" | "nbclient.cli" => {
            Some((&TRAITLETS, rest))
        }
        "papermill" | "papermill.cli" => Some((&PAPERMILL, rest)),
        _ => None,
    }
}

/// The script or module that a Python runs, and its arguments.
fn script(arguments: &[String]) -> Option<(&str, &[String])> {
    let mut at = 0;
    loop {
        let word = arguments.get(at)?.as_str();
        let rest = arguments.get(at + 1..).unwrap_or_default();
        match word {
            "-m" => {
                return rest
                    .split_first()
                    .map(|(module, rest)| (module.as_str(), rest));
            }
            "-X" | "-W" | "--check-hash-based-pycs" => at += 2,
            "-" | "-c" => return None,
            _ if word.starts_with('-') => at += 1,
            // `python …/nbconvert/__main__.py`
            _ if file_name(word) == "__main__.py" => {
                return Some((file_name(word.strip_suffix("/__main__.py")?), rest));
            }
            _ => return Some((file_name(word), rest)),
        }
    }
}

fn file_name(path: &str) -> &str {
    Path::new(path)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(path)
}

impl Options {
    fn notebook<'a>(&self, arguments: &'a [String]) -> Option<&'a str> {
        let mut notebooks = Vec::new();
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            if word == "--" {
                notebooks.extend(words.by_ref());
            } else if word == "--stdin" {
                return None;
            } else if word == "-" || !word.starts_with('-') {
                notebooks.push(word);
            } else {
                for _ in 0..self.values_of(word) {
                    words.next();
                }
            }
        }
        let first = *notebooks.first()?;
        (notebooks.len() == self.notebooks && first != "-").then_some(first)
    }

    /// How many of the words that follow belong to an option.
    fn values_of(&self, option: &str) -> usize {
        let (name, given) = match option.split_once('=') {
            Some((name, _)) if option.starts_with("--") => (name, 1),
            // `-kpython3`
            _ if !option.starts_with("--") && option.is_char_boundary(2) && option.len() > 2 => {
                (&option[..2], 1)
            }
            _ => (option, 0),
        };
        let takes: usize = match self.values {
            _ if self.flags.contains(&name) => 0,
            None => 1,
            Some((_, two)) if two.contains(&name) => 2,
            Some((one, _)) if one.contains(&name) => 1,
            Some(_) => 0,
        };
        takes.saturating_sub(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_start_a_batch_client() {
        let cases = [
            (
                "/e/python3 /e/jupyter-nbconvert --to notebook --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "/e/python -u -X dev -W ignore /e/jupyter nbconvert --execute a",
                Told::Notebook("a"),
            ),
            (
                "jupyter-nbconvert a.ipynb --execute --log-level WARN",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter-nbconvert --log-level=WARN --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter-nbconvert --execute --ExecutePreprocessor.timeout 600 a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter-nbconvert --execute --ExecutePreprocessor.timeout=-1 a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter-nbconvert --output b.ipynb --inplace --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter-nbconvert --execute -y -- a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            ("jupyter-nbconvert --execute a.ipynb b.ipynb", Told::Unclear),
            (
                "jupyter-nbconvert --execute --stdin --to html",
                Told::Unclear,
            ),
            ("jupyter-nbconvert --execute", Told::Unclear),
            (
                "python -m nbconvert --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "python -m jupyter nbconvert --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "python /s/nbconvert/__main__.py --execute a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "python /e/jupyter-execute --inplace --timeout 60 a.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "jupyter execute --output=b a.ipynb --kernel_name cellferry",
                Told::Notebook("a.ipynb"),
            ),
            ("python -m nbclient a.ipynb", Told::Notebook("a.ipynb")),
            ("papermill a.ipynb b.ipynb", Told::Notebook("a.ipynb")),
            (
                "papermill -p x v.ipynb -r y w.ipynb -kcellferry a.ipynb b.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "papermill -px v.ipynb --engine=e a.ipynb b.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "papermill --request-save-on-cell-execute a.ipynb b.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "papermill --no-progress-bar --cwd /tmp a.ipynb b.ipynb",
                Told::Notebook("a.ipynb"),
            ),
            (
                "python -m papermill a.ipynb - --log-output",
                Told::Notebook("a.ipynb"),
            ),
            ("papermill - b.ipynb", Told::Unclear),
            ("papermill b.ipynb", Told::Unclear),
            ("papermill", Told::Unclear),
            (
                "python my_tool.py papermill a.ipynb b.ipynb",
                Told::NoRunner,
            ),
            ("python -c papermill a.ipynb b.ipynb", Told::NoRunner),
            ("python /e/jupyter-lab a.ipynb", Told::NoRunner),
            ("python /home/papermill/run a.ipynb", Told::NoRunner),
            ("jupyter", Told::NoRunner),
            ("python", Told::NoRunner),
            ("", Told::NoRunner),
        ];
        for (line, expected) in cases {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(notebook(&arguments), expected, "{line}");
        }
        assert_eq!(
            notebook(&["papermill".to_owned(), "-é".to_owned()]),
            Told::Unclear
        );
    }
}
