//! What IPython adds to Python: cell magics, line magics, shell lines, help.

use super::super::Dynamic;

/// A cell whose first line is `%%name arguments`.
#[derive(Debug, PartialEq, Eq)]
pub struct CellMagic<'a> {
    /// The magic's name.
    pub name: &'a str,
    /// The rest of the first line.
    pub line: &'a str,
    /// The lines below.
    pub body: &'a str,
}

/// Finds a cell magic. As in IPython, only blank lines may come before it.
pub fn cell_magic(source: &str) -> Option<CellMagic<'_>> {
    let start = source
        .lines()
        .take_while(|line| line.trim().is_empty())
        .map(|line| line.len() + 1)
        .sum::<usize>();
    let source = source.get(start..)?.trim_start();
    let rest = source.strip_prefix("%%")?;
    let (first, body) = rest.split_once('\n').unwrap_or((rest, ""));
    let first = first.trim_end();
    let (name, line) = split_word(first);
    (!name.is_empty()).then_some(CellMagic {
        name,
        line: line.trim(),
        body,
    })
}

/// What the body of a cell magic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Python in the notebook namespace.
    Python,
    /// Python in a function: `%%timeit`.
    PythonInside,
    /// Text for something else.
    Text,
    /// A shell command into which names are put.
    Shell,
    /// Nobody knows.
    Unknown,
}

impl Body {
    /// Whether it is anything but Python.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Shell)
    }
}

impl CellMagic<'_> {
    /// What the body is.
    pub fn body_kind(&self) -> Body {
        body_of(self.name)
    }
}

fn body_of(name: &str) -> Body {
    match name {
        "time" | "capture" | "prun" | "memit" | "mprun" => Body::Python,
        "timeit" => Body::PythonInside,
        "system" | "sx" | "!" => Body::Shell,
        "bash" | "sh" | "script" | "html" | "HTML" | "javascript" | "js" | "latex" | "markdown"
        | "svg" | "SVG" | "writefile" | "file" | "python" | "python2" | "python3" | "pypy"
        | "perl" | "ruby" | "cmd" => Body::Text,
        _ => Body::Unknown,
    }
}

/// What a line magic does to names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Runs the rest of the line as Python in the notebook namespace.
    Python,
    /// Runs the rest of the line as Python in a function.
    PythonInside,
    /// Sets how the worker behaves: replayed elsewhere.
    Setting,
    /// `%config`: the same, by a Python assignment.
    Config,
    /// `%load_ext`: the same, by code that is not in the cell.
    Extension,
    /// `%aimport`: imports modules.
    Imports,
    /// Looks at the names in its arguments.
    Looks,
    /// `%xdel`: deletes a name, and all others of its object.
    Deletes,
    /// `%sc`: binds a name to what a shell command prints.
    Captures,
    /// Touches no names but those it interpolates.
    Nothing,
    /// May touch any name.
    Anything(Dynamic),
}

/// What a line magic does to names.
pub fn line_of(name: &str) -> Line {
    match name {
        "time" | "prun" | "memit" | "mprun" | "lprun" => Line::Python,
        "timeit" => Line::PythonInside,
        "matplotlib" | "autoreload" | "precision" | "colors" | "xmode" | "pprint" | "gui"
        | "autocall" | "automagic" | "autoawait" | "doctest_mode" => Line::Setting,
        "config" => Line::Config,
        "load_ext" | "reload_ext" => Line::Extension,
        "aimport" => Line::Imports,
        "pinfo" | "pinfo2" | "pdoc" | "psource" | "pfile" | "pdef" => Line::Looks,
        "xdel" => Line::Deletes,
        "sc" => Line::Captures,
        "cd" | "pwd" | "ls" | "ll" | "lx" | "la" | "lf" | "lk" | "ldir" | "mkdir" | "rmdir"
        | "cp" | "mv" | "rm" | "cat" | "less" | "more" | "man" | "rep" | "env" | "set_env"
        | "pip" | "uv" | "conda" | "mamba" | "micromamba" | "lsmagic" | "magic" | "history"
        | "hist" | "quickref" | "pushd" | "popd" | "dirs" | "dhist" | "bookmark" | "alias"
        | "unalias" | "rehashx" | "system" | "sx" | "tb" | "killbgscripts" | "connect_info"
        | "qtconsole" | "clear" | "notebook" | "pdb" | "page" | "pycat" | "alias_magic"
        | "logoff" | "logon" | "logstate" | "logstop" | "logstart" | "autosave" | "cellferry"
        | "subshell" => Line::Nothing,
        _ => Line::Anything(Dynamic::Magic),
    }
}

/// Extensions that leave the notebook's names alone when they are loaded.
pub fn is_harmless_extension(name: &str) -> bool {
    matches!(
        name,
        "autoreload"
            | "autotime"
            | "cython"
            | "Cython"
            | "dotenv"
            | "heat"
            | "jupyter_black"
            | "line_profiler"
            | "memory_profiler"
            | "nb_black"
            | "rpy2.ipython"
            | "scalene"
            | "snakeviz"
            | "sql"
            | "storemagic"
            | "tensorboard"
            | "watermark"
    )
}

/// Whether a single line that starts with the word may be a magic without its `%`.
/// Source: IPython's `AutoMagicChecker`, and its list of magics.
pub fn automagic(line: &str) -> Option<&str> {
    let line = line.trim();
    let name = line.split_whitespace().next()?;
    let rest = line[name.len()..].trim_start();
    let other = [
        "reset",
        "reset_selective",
        "run",
        "who",
        "who_ls",
        "whos",
        "psearch",
        "load",
        "loadpy",
        "edit",
        "ed",
        "macro",
        "recall",
        "rerun",
        "save",
        "pylab",
        "debug",
        "unload_ext",
        "code_wrap",
        "pastebin",
    ];
    let known = other.contains(&name) || !matches!(line_of(name), Line::Anything(_));
    let python = rest.starts_with([
        '=', '!', '(', ')', '<', '>', ',', '+', '*', '/', '%', '^', '&', '|',
    ]);
    (known && !python).then_some(line)
}

/// The options of a magic that runs Python, each letter that takes a value with `:` after it.
fn options_of(name: &str) -> &'static str {
    match name {
        "timeit" => "n:r:tcp:qov:",
        "prun" => "D:l:rs:T:q",
        "memit" => "r:t:i:co",
        "mprun" => "f:T:rc",
        "lprun" => "f:m:D:T:u:rsz",
        _ => "",
    }
}

/// The options of a magic that runs Python, with their values, and its statement.
pub fn options<'l>(name: &str, line: &'l str) -> (Vec<(char, &'l str)>, &'l str) {
    let known = options_of(name);
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while let Some(option) = rest.strip_prefix('-') {
        let (word, after) = split_word(option);
        if option.starts_with("-no-raise-error") {
            rest = after;
            continue;
        }
        // Else it is a number or an expression that starts with a minus.
        if !word.starts_with(|letter: char| letter != ':' && known.contains(letter)) {
            break;
        }
        rest = after;
        for (at, letter) in word.char_indices() {
            let takes_value = known
                .split_once(letter)
                .is_some_and(|(_, after)| after.starts_with(':'));
            if takes_value {
                let mut value = &word[at + letter.len_utf8()..];
                if value.is_empty() {
                    (value, rest) = split_word(rest);
                }
                found.push((letter, value));
                break;
            }
            found.push((letter, ""));
        }
    }
    (found, rest)
}

/// The first word, and the rest without the space between.
pub fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

/// Whether IPython leaves the magic's line as it is.
pub fn is_never_interpolated(name: &str) -> bool {
    matches!(name, "time" | "timeit" | "prun" | "debug")
}

/// The names after `--out`, `--err` and `--proc` of a script magic.
pub fn script_outputs(line: &str) -> impl Iterator<Item = &str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut found = Vec::new();
    // An option may be cut short as long as it is plain which one is meant.
    let binds = |option: &str| {
        let full = ["--out", "--err", "--proc"];
        option.len() > 2 && full.iter().any(|full| full.starts_with(option))
    };
    for (index, word) in words.iter().enumerate() {
        if let Some((option, value)) = word.split_once('=') {
            if binds(option) {
                found.push(value);
            }
        } else if binds(word) {
            found.extend(words.get(index + 1));
        }
    }
    found.into_iter()
}

/// What a line interpolates: `$name` and `{expression}`, as IPython's formatter sees them. Each is
/// a Python expression.
pub fn interpolated(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'$' if bytes.get(at + 1) == Some(&b'$') => at += 2,
            b'$' => {
                let rest = &line[at + 1..];
                let length = rest
                    .find(|letter: char| {
                        !(letter.is_alphanumeric() || letter == '_' || letter == '.')
                    })
                    .unwrap_or(rest.len());
                let name = rest[..length].trim_end_matches('.');
                if !name.is_empty() && !name.starts_with(|letter: char| letter.is_ascii_digit()) {
                    found.push(name);
                }
                at += 1 + length;
            }
            b'{' if bytes.get(at + 1) == Some(&b'{') => at += 2,
            b'{' => {
                let rest = &line[at + 1..];
                let mut depth = 1usize;
                let end = rest.bytes().position(|byte| {
                    match byte {
                        b'{' => depth += 1,
                        b'}' => depth -= 1,
                        _ => {}
                    }
                    depth == 0
                });
                let Some(end) = end else { break };
                // A conversion after the expression is not part of it; a colon may be a slice's.
                let inner = &rest[..end];
                found.push(inner);
                found.extend(inner.rsplit_once('!').map(|(expression, _)| expression));
                found.extend(inner.split_once('!').map(|(expression, _)| expression));
                found.extend(inner.rsplit_once(':').map(|(expression, _)| expression));
                at += end + 2;
            }
            _ => at += 1,
        }
    }
    found
}
