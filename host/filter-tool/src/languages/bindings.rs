//! The bindings for C and Go, made from a project's `wit/`, and what its world exports.

use std::collections::BTreeMap;
use std::path::Path;

use wit_bindgen_core::wit_parser::{Resolve, TypeDefKind, WorldId, WorldItem};
use wit_component::StringEncoding;

use crate::error::{Error, Result};

/// A project's contract and world.
pub struct Wit {
    resolve: Resolve,
    world: WorldId,
}

/// Wraps the error of a library that reads the contract or makes bindings for it.
fn contract<E: Into<Box<dyn std::error::Error + Send + Sync>>>(doing: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Contract { doing, source: error.into() }
}

impl Wit {
    /// Reads the directory `wit/`.
    ///
    /// # Errors
    /// What the parser says.
    pub fn read(wit: &Path) -> Result<Wit> {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_path(wit).map_err(contract("cannot read wit/"))?;
        let world = resolve.select_world(&[package], None).map_err(contract("wit/ has no world of its own"))?;
        Ok(Wit { resolve, world })
    }

    /// The contract.
    pub fn resolve(&self) -> &Resolve {
        &self.resolve
    }

    /// The project's world in it.
    pub fn world(&self) -> WorldId {
        self.world
    }

    /// The interfaces of the contract that the world exports, each with its functions.
    pub fn exports(&self) -> BTreeMap<String, Vec<String>> {
        self.functions(self.world)
    }

    /// All interfaces of the contract that a filter can export, each with its functions.
    pub fn everything(&self) -> BTreeMap<String, Vec<String>> {
        let worlds = self.resolve.worlds.iter();
        let everything = worlds.filter(|(_, world)| world.name == "everything").map(|(id, _)| id).next();
        everything.map(|world| self.functions(world)).unwrap_or_default()
    }

    /// The fields of a record of the contract.
    pub fn fields(&self, record: &str) -> Vec<String> {
        let named = self.resolve.types.iter().filter(|(_, kind)| kind.name.as_deref() == Some(record));
        let fields = named.filter_map(|(_, kind)| match &kind.kind {
            TypeDefKind::Record(record) => Some(record.fields.iter().map(|field| field.name.clone()).collect()),
            _ => None,
        });
        fields.into_iter().next().unwrap_or_default()
    }

    fn functions(&self, world: WorldId) -> BTreeMap<String, Vec<String>> {
        let exports = self.resolve.worlds[world].exports.values();
        exports
            .filter_map(|item| {
                let WorldItem::Interface { id, .. } = item else { return None };
                let interface = &self.resolve.interfaces[*id];
                Some((interface.name.clone()?, interface.functions.keys().cloned().collect()))
            })
            .collect()
    }

    /// Makes the bindings for C in a directory: `mine.h`, `mine.c` and `mine_component_type.o`,
    /// if the world is called `mine`. Files that are up to date are not touched. Returns the names.
    ///
    /// # Errors
    /// What the generator says, or the file system.
    pub fn c_bindings(mut self, into: &Path) -> Result<Vec<String>> {
        let mut files = wit_bindgen_core::Files::default();
        wit_bindgen_c::Opts::default()
            .build()
            .generate(&mut self.resolve, self.world, &mut files)
            .map_err(contract("cannot make bindings for wit/"))?;
        std::fs::create_dir_all(into).map_err(Error::file("cannot make", into))?;
        let mut names = Vec::new();
        for (name, bytes) in files.iter() {
            let path = into.join(name);
            if std::fs::read(&path).ok().as_deref() != Some(bytes) {
                std::fs::write(&path, bytes).map_err(Error::file("cannot write", &path))?;
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// Makes the bindings for Go as packages below `place`, an import path. The exported interfaces
    /// are stubs. Returns the files: the path below `place`, and the text.
    ///
    /// # Errors
    /// What the generator says.
    pub fn go_bindings(mut self, place: &str) -> Result<Vec<(String, String)>> {
        let mut files = wit_bindgen_core::Files::default();
        let options = wit_bindgen_go::Opts {
            // It would run a program of the user's.
            format: wit_bindgen_go::Format::False,
            generate_stubs: true,
            pkg_name: Some(place.to_owned()),
            ..wit_bindgen_go::Opts::default()
        };
        options
            .build()
            .generate(&mut self.resolve, self.world, &mut files)
            .map_err(contract("cannot make bindings for wit/"))?;
        let files = files.iter();
        Ok(files.map(|(path, text)| (path.to_owned(), String::from_utf8_lossy(text).into_owned())).collect())
    }

    /// A core module with the type of the component that it is to become.
    ///
    /// # Errors
    /// What the library says that writes the type.
    pub fn embedded(&self, mut module: Vec<u8>) -> Result<Vec<u8>> {
        wit_component::embed_component_metadata(&mut module, &self.resolve, self.world, StringEncoding::UTF8)
            .map_err(contract("cannot write the component's type"))?;
        Ok(module)
    }
}
