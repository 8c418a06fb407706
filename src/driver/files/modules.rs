//! The user's own modules beside the notebook: those that a step on a far host imports are put where its workers look
//! for them, and put there again when they have changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::analysis::python::imported_modules;
use crate::session::TargetName;

/// The directory below an agent's own in which modules stand.
pub const MODULES: &str = "modules";

/// A package goes with all its files up to so many bytes; of a larger one only its modules go.
const LARGEST: u64 = 16 << 20;

/// No more files than these are looked at for one module.
const MOST: usize = 10_000;

/// Directories in directories are looked at to this depth.
const DEEPEST: usize = 16;

/// What tells that a file has been changed.
type Stamp = (u64, Option<SystemTime>);

/// A file of a module, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// Where it is.
    pub path: PathBuf,
    /// How many bytes it has.
    pub size: u64,
    stamp: Stamp,
}

/// The files of some modules, by their path relative to the notebook's folder.
pub type ModuleFiles = BTreeMap<PathBuf, ModuleFile>;

/// The modules in one folder, and what far hosts have of them.
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    /// What each source file imports, as of its stamp.
    imports: HashMap<PathBuf, (Stamp, BTreeSet<String>)>,
    there: HashMap<TargetName, There>,
}

#[derive(Debug, Default)]
struct There {
    /// Modules that cells there have imported.
    used: BTreeSet<String>,
    /// Files as they have been sent.
    sent: HashMap<PathBuf, Stamp>,
}

impl Modules {
    /// The modules in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            imports: HashMap::new(),
            there: HashMap::new(),
        }
    }

    /// A cell on a far host imports these modules; the files that must be sent there before it runs.
    pub fn lacking(&mut self, target: &TargetName, imported: BTreeSet<String>) -> ModuleFiles {
        let there = self.there.entry(target.clone()).or_default();
        there.used.extend(imported);
        let mut open: Vec<String> = there.used.iter().cloned().collect();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut files = ModuleFiles::new();
        while let Some(name) = open.pop() {
            if seen.contains(&name) {
                continue;
            }
            let found = find(&self.folder, &name);
            seen.insert(name);
            for file in found.values().filter(|file| is_source(&file.path)) {
                open.extend(self.imports_of(file));
            }
            files.extend(found);
        }
        let sent = self.there.get(target).map(|there| &there.sent);
        files.retain(|path, file| sent.and_then(|sent| sent.get(path)) != Some(&file.stamp));
        files
    }

    fn imports_of(&mut self, file: &ModuleFile) -> BTreeSet<String> {
        if let Some((stamp, known)) = self.imports.get(&file.path)
            && *stamp == file.stamp
        {
            return known.clone();
        }
        // What cannot be read cannot be sent either, and will be told then.
        let source = std::fs::read(&file.path).unwrap_or_default();
        let imports = imported_modules(&String::from_utf8_lossy(&source));
        let known = (file.stamp, imports.clone());
        self.imports.insert(file.path.clone(), known);
        imports
    }

    /// These have been sent.
    pub fn sent(&mut self, target: &TargetName, files: ModuleFiles) {
        let there = self.there.entry(target.clone()).or_default();
        let stamps = files.into_iter().map(|(path, file)| (path, file.stamp));
        there.sent.extend(stamps);
    }

    /// A host is lost, with what had been sent to it.
    pub fn lost(&mut self, target: &TargetName) {
        self.there.remove(target);
    }
}

/// The files of a module in a folder; none if it is not there.
fn find(folder: &Path, name: &str) -> ModuleFiles {
    let mut files = ModuleFiles::new();
    let package = folder.join(name);
    if !package.join("__init__.py").is_file() {
        let module = PathBuf::from(format!("{name}.py"));
        if let Ok(status) = folder.join(&module).metadata()
            && status.is_file()
        {
            files.insert(module.clone(), file(folder.join(module), &status));
            return files;
        }
    }
    add(&mut files, folder, Path::new(name), 0);
    let size: u64 = files.values().map(|file| file.size).sum();
    let is_package = files.keys().any(|path| is_source(path));
    if size > LARGEST || !package.join("__init__.py").is_file() {
        files.retain(|path, _| is_source(path));
    }
    if !is_package {
        files.clear();
    }
    files
}

/// Adds all files below a directory.
fn add(files: &mut ModuleFiles, folder: &Path, within: &Path, depth: usize) {
    let Ok(entries) = folder.join(within).read_dir() else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".") || name == "__pycache__";
        if hidden || files.len() >= MOST {
            continue;
        }
        let (path, within) = (entry.path(), within.join(&name));
        match path.metadata() {
            Ok(status) if status.is_dir() && depth < DEEPEST => {
                add(files, folder, &within, depth + 1);
            }
            Ok(status) if status.is_file() => {
                files.insert(within, file(path, &status));
            }
            _ => {}
        }
    }
}

fn file(path: PathBuf, status: &Metadata) -> ModuleFile {
    ModuleFile {
        path,
        size: status.len(),
        stamp: (status.len(), status.modified().ok()),
    }
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "py")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn names(files: &ModuleFiles) -> Vec<&str> {
        files.keys().map(|path| path.to_str().unwrap()).collect()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_a_module_imports_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "a.py", "import b, os\nfrom p.q import x");
        write(at, "b.py", "def f():\n    import a");
        write(at, "p/__init__.py", "from . import q");
        write(at, "p/q.py", "");
        write(at, "p/data/table.csv", "1");
        write(at, "p/__pycache__/q.pyc", "");
        write(at, "p/.hidden", "");
        write(at, "data/table.csv", "1");
        write(at, "spaces/deep/m.py", "");
        write(at, "spaces/notes.txt", "");
        write(at, "unused.py", "");
        let target = TargetName::from("lab");
        let mut modules = Modules::new(at.to_owned());
        let all = [
            "a.py",
            "b.py",
            "p/__init__.py",
            "p/data/table.csv",
            "p/q.py",
        ];
        let lacking = modules.lacking(&target, set(&["a", "numpy", "data"]));
        assert_eq!(names(&lacking), all);
        modules.sent(&target, lacking);
        assert!(modules.lacking(&target, set(&["b"])).is_empty());
        let spaces = modules.lacking(&target, set(&["spaces"]));
        assert_eq!(names(&spaces), ["spaces/deep/m.py"]);
        modules.sent(&target, spaces);
        // Whoever has used it gets it again, whatever the next cell imports.
        write(at, "b.py", "import unused");
        assert_eq!(
            names(&modules.lacking(&target, set(&[]))),
            ["b.py", "unused.py"]
        );
        modules.lost(&target);
        assert_eq!(names(&modules.lacking(&target, set(&["p"]))), &all[2..]);
    }

    #[test]
    fn of_a_large_package_only_the_modules_go() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "p/__init__.py", "");
        let data = std::fs::File::create(folder.path().join("p/data")).unwrap();
        data.set_len(LARGEST).unwrap();
        let find = || find(folder.path(), "p");
        assert_eq!(names(&find()), ["p/__init__.py", "p/data"]);
        data.set_len(LARGEST + 1).unwrap();
        assert_eq!(names(&find()), ["p/__init__.py"]);
    }
}
