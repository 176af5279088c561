//! A directory of small files, rewritten for every input.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process,
};

/// Files below a directory of this process, in `TMPDIR`: `ci/fuzz` puts that into memory and removes
/// it.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    written: HashMap<&'static str, Vec<u8>>,
}

impl Tree {
    /// An empty directory.
    pub fn new(name: &str) -> Tree {
        let root = std::env::temp_dir().join(format!("vmlet-fuzz-{name}-{}", process::id()));
        fs::create_dir_all(&root).expect("a directory");
        Tree {
            root,
            written: HashMap::new(),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file unless it has this content.
    pub fn write(&mut self, name: &'static str, content: &[u8]) {
        if self.written.get(name).is_some_and(|old| old == content) {
            return;
        }
        let path = self.root.join(name);
        if let Some(parent) = path.parent().filter(|_| !self.written.contains_key(name)) {
            fs::create_dir_all(parent).expect("a directory");
        }
        fs::write(&path, content).expect("a file");
        self.written.insert(name, content.to_vec());
    }
}
