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
    let (name, line) = first.split_once(char::is_whitespace).unwrap_or((first, ""));
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
    /// Python that binds nothing: `%%timeit`.
    PythonInside,
    /// Text for something else.
    Text,
    /// Nobody knows.
    Unknown,
}

/// What the body of a cell magic is.
pub fn body_of(name: &str) -> Body {
    match name {
        "time" | "capture" | "prun" | "memit" | "mprun" => Body::Python,
        "timeit" => Body::PythonInside,
        "bash" | "sh" | "script" | "system" | "sx" | "!" | "html" | "HTML" | "javascript"
        | "js" | "latex" | "markdown" | "svg" | "SVG" | "writefile" | "file" | "python"
        | "python2" | "python3" | "pypy" | "perl" | "ruby" | "cmd" => Body::Text,
        _ => Body::Unknown,
    }
}

/// What a line magic does to names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Runs the rest of the line as Python.
    Python,
    /// Sets how the worker behaves: replayed elsewhere.
    Setting,
    /// Looks at the names in its arguments.
    Looks,
    /// Deletes the names in its arguments.
    Deletes,
    /// Touches no names but those it interpolates.
    Nothing,
    /// May touch any name.
    Anything(Dynamic),
}

/// What a line magic does to names.
pub fn line_of(name: &str) -> Line {
    match name {
        "time" | "timeit" | "prun" | "memit" | "mprun" | "lprun" => Line::Python,
        "matplotlib" | "config" | "load_ext" | "reload_ext" | "autoreload" | "precision"
        | "colors" | "xmode" | "pprint" | "gui" | "aimport" | "autocall" | "automagic"
        | "doctest_mode" => Line::Setting,
        "pinfo" | "pinfo2" | "pdoc" | "psource" | "pfile" | "pdef" => Line::Looks,
        "xdel" => Line::Deletes,
        "cd" | "pwd" | "ls" | "ll" | "lx" | "la" | "mkdir" | "rmdir" | "cp" | "mv" | "rm"
        | "cat" | "less" | "more" | "man" | "env" | "set_env" | "pip" | "uv" | "conda"
        | "mamba" | "micromamba" | "lsmagic" | "magic" | "history" | "hist" | "quickref"
        | "pushd" | "popd" | "dirs" | "dhist" | "bookmark" | "alias" | "unalias" | "rehashx"
        | "system" | "sx" | "sc" | "tb" | "killbgscripts" | "connect_info" | "qtconsole"
        | "clear" | "notebook" | "pdb" | "page" | "pycat" | "alias_magic" | "logoff" | "logon"
        | "logstate" | "logstop" | "logstart" | "cellferry" | "subshell" => Line::Nothing,
        _ => Line::Anything(Dynamic::Magic),
    }
}

/// The arguments of a magic that runs Python, without its own options.
pub fn without_options(line: &str) -> &str {
    let mut rest = line.trim_start();
    while let Some(option) = rest.strip_prefix('-') {
        let (word, after) = option
            .split_once(char::is_whitespace)
            .unwrap_or((option, ""));
        rest = after.trim_start();
        // `-n 10` and the like: a number or file after a single letter is the option's value.
        if word.len() == 1 && "nrsltTDf".contains(word) {
            rest = rest
                .split_once(char::is_whitespace)
                .map_or("", |(_, after)| after.trim_start());
        }
    }
    rest
}

/// The names after `--out`, `--err` and `--proc` of a script magic.
pub fn script_outputs(line: &str) -> impl Iterator<Item = &str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        if let Some((option, value)) = word.split_once('=') {
            if matches!(option, "--out" | "--err" | "--proc") {
                found.push(value);
            }
        } else if matches!(*word, "--out" | "--err" | "--proc") {
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
                // A conversion or format after the expression is not part of it.
                let inner = &rest[..end];
                let inner = inner
                    .split_once('!')
                    .map_or(inner, |(expression, _)| expression);
                found.push(inner);
                if let Some((expression, _)) = inner.rsplit_once(':') {
                    found.push(expression);
                }
                at += end + 2;
            }
            _ => at += 1,
        }
    }
    found
}
