//! The modules of a crate, and which file a path leads to.
//!
//! A path is followed the way the compiler follows it: through child modules, through names that a
//! `use` brought in, through `pub use`. So a name that a parent merely re-exports is an import of
//! the file that defines it, not of the parent.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Import, Path, Source, Which};

/// Gives a file's text; `None` if there is no such file.
pub type Reader<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A crate, read from its root file.
pub struct Crate {
    which: Which,
    modules: Vec<Module>,
}

/// One module with its place in the tree.
struct Module {
    /// The file it is written in, as the crate's reader named it.
    file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    source: Source,
    /// Macros that other files put at the root with `#[macro_export]`.
    macros: BTreeMap<String, usize>,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Module(usize),
    /// An item of this module and its name. A path into an item (`Enum::Variant`) ends at the item.
    Item(usize, String),
}

/// Which file imports which, and the names it takes from it.
pub type Imports = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

impl Crate {
    /// Reads the crate whose root is `root`.
    ///
    /// Files that `which` leaves out are not read, nor are the modules below them.
    pub fn read(root: &str, which: Which, read: Reader) -> Result<Crate, String> {
        let mut all = Crate { which, modules: Vec::new() };
        let text = read(root).ok_or_else(|| format!("{root} does not exist"))?;
        let source = Source::read(&text, which).map_err(|error| format!("{root}: {error}"))?;
        let directory = root.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        all.add(root, None, source.unwrap_or_default(), &directory, read)?;
        Ok(all)
    }

    /// Adds a module and those below it. `directory` is where the files of its children are.
    fn add(
        &mut self,
        file: &str,
        parent: Option<usize>,
        mut source: Source,
        directory: &str,
        read: Reader,
    ) -> Result<usize, String> {
        let here = self.modules.len();
        let inline = std::mem::take(&mut source.inline);
        let files = source.files.clone();
        if let Some(root) = self.modules.first_mut() {
            root.macros.extend(source.exported_macros.iter().map(|name| (name.clone(), here)));
        }
        let (children, macros) = (BTreeMap::new(), BTreeMap::new());
        self.modules.push(Module { file: file.to_owned(), parent, children, source, macros });
        for (name, inner) in inline {
            let child = self.add(file, Some(here), inner, &format!("{directory}/{name}"), read)?;
            self.modules[here].children.insert(name, child);
        }
        for name in files {
            let flat = format!("{directory}/{name}.rs");
            let nested = format!("{directory}/{name}/mod.rs");
            let (path, text) = read(&flat)
                .map(|text| (flat.clone(), text))
                .or_else(|| read(&nested).map(|text| (nested.clone(), text)))
                .ok_or_else(|| format!("{file} declares mod {name}: neither {flat} nor {nested} exists"))?;
            if let Some(source) = Source::read(&text, self.which).map_err(|error| format!("{path}: {error}"))? {
                let child = self.add(&path, Some(here), source, &format!("{directory}/{name}"), read)?;
                self.modules[here].children.insert(name, child);
            }
        }
        Ok(here)
    }

    /// The files of the crate.
    pub fn files(&self) -> BTreeSet<String> {
        self.modules.iter().map(|module| module.file.clone()).collect()
    }

    /// Structs, enums, unions, traits and type aliases, with the file that defines each.
    pub fn types(&self) -> Vec<(String, String)> {
        let of = |module: &Module| {
            let file = module.file.clone();
            module.source.types.iter().map(|name| (name.clone(), file.clone())).collect::<Vec<_>>()
        };
        self.modules.iter().flat_map(of).collect()
    }

    /// What each file takes from other files of the crate.
    pub fn imports(&self) -> Imports {
        let mut found = Imports::new();
        for here in 0..self.modules.len() {
            let source = &self.modules[here].source;
            for import in source.imports.iter().chain(&source.local_imports) {
                match self.resolve(here, &import.path) {
                    Some(Target::Module(of)) if import.name == "*" => self.take_all(&mut found, here, of),
                    // What is taken from an imported module is in the paths that begin with its
                    // name.
                    Some(Target::Module(_)) | None => {}
                    Some(Target::Item(of, name)) => self.take(&mut found, here, of, &name),
                }
            }
            for path in &source.paths {
                if let Some(Target::Item(of, name)) = self.resolve(here, path) {
                    self.take(&mut found, here, of, &name);
                }
            }
        }
        found
    }

    fn take(&self, found: &mut Imports, here: usize, of: usize, name: &str) {
        let (from, to) = (&self.modules[here].file, &self.modules[of].file);
        if from != to {
            found.entry(from.clone()).or_default().entry(to.clone()).or_default().insert(name.to_owned());
        }
    }

    /// `use of::*`: everything that `of` defines, and what it re-exports as far as the code names
    /// it.
    fn take_all(&self, found: &mut Imports, here: usize, of: usize) {
        if !self.modules[of].source.items.is_empty() {
            self.take(found, here, of, "*");
        }
        for name in &self.modules[here].source.names {
            if let Some(Target::Item(file, name)) = self.lookup(of, name, &mut BTreeSet::new()) {
                self.take(found, here, file, &name);
            }
        }
    }

    /// What a path in the code of module `here` leads to; `None` outside of the crate.
    fn resolve(&self, here: usize, path: &Path) -> Option<Target> {
        self.follow(here, path, &mut BTreeSet::new())
    }

    fn follow(&self, here: usize, path: &Path, seen: &mut BTreeSet<(usize, String)>) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut target = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(here),
            "super" => Target::Module(self.modules[here].parent?),
            name => match self.lookup(here, name, seen) {
                Some(target) => target,
                None => {
                    let local = self.modules[here].source.local_imports.iter().find(|import| import.name == name)?;
                    if !seen.insert((here, format!("local {name}"))) {
                        return None;
                    }
                    self.follow(here, &local.path, seen)?
                }
            },
        };
        while let (&Target::Module(module), Some((name, after))) = (&target, rest.split_first()) {
            rest = after;
            target = match name.as_str() {
                "super" => Target::Module(self.modules[module].parent?),
                // A name that is nowhere to be seen comes from a macro in that module.
                name => self.lookup(module, name, seen).unwrap_or_else(|| Target::Item(module, name.to_owned())),
            };
        }
        Some(target)
    }

    /// What a name means in a module.
    fn lookup(&self, module: usize, name: &str, seen: &mut BTreeSet<(usize, String)>) -> Option<Target> {
        let here = &self.modules[module];
        if let Some(child) = here.children.get(name) {
            return Some(Target::Module(*child));
        }
        if here.source.items.contains(name) {
            return Some(Target::Item(module, name.to_owned()));
        }
        if let Some(of) = here.macros.get(name) {
            return Some(Target::Item(*of, name.to_owned()));
        }
        if !seen.insert((module, name.to_owned())) {
            return None;
        }
        let is_it = |import: &&Import| import.name == name;
        if let Some(import) = here.source.imports.iter().find(is_it) {
            return self.follow(module, &import.path, seen);
        }
        for import in here.source.imports.iter().filter(|import| import.name == "*") {
            if let Some(Target::Module(of)) = self.follow(module, &import.path, seen)
                && let Some(found) = self.lookup(of, name, seen)
            {
                return Some(found);
            }
        }
        None
    }
}
