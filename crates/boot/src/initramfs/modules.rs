//! Kernel modules by name, with what they depend on, unpacked and in load order.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use thiserror::Error;

/// No module is larger, packed or not.
const LIMIT: u64 = 256 << 20;

/// Why modules cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The index of dependencies is missing.
    #[error("{path} cannot be read. Run depmod for this kernel, or name its modules directory")]
    NoIndex {
        /// The index.
        path: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// No such module.
    #[error("this kernel has no module {name}")]
    Unknown {
        /// The module's name.
        name: String,
    },
    /// The module's file cannot be read or unpacked.
    #[error("module {path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The index names a file outside the modules directory.
    #[error(
        "modules.dep names {path}, which does not lie in the modules directory. Run depmod for \
         this kernel"
    )]
    Outside {
        /// The path.
        path: String,
    },
    /// The file is too large to be a module.
    #[error("module {path} has more than {LIMIT} bytes")]
    TooLarge {
        /// The file.
        path: String,
    },
}

/// A module ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF file.
    pub content: Vec<u8>,
}

/// The modules `names` of the kernel whose modules lie in `directory` (`/lib/modules/VERSION`),
/// each after those it depends on. A name that is built into the kernel gives nothing.
pub fn select(directory: &Path, names: &[String]) -> Result<Vec<Module>, ModuleError> {
    let index = Index::read(directory)?;
    let mut order: Vec<&str> = Vec::new();
    for name in names {
        let wanted = canonical(name);
        let Some(path) = index.paths.get(&wanted) else {
            if index.builtin.contains(&wanted) {
                continue;
            }
            return Err(ModuleError::Unknown { name: name.clone() });
        };
        // The index lists all dependencies, the nearest first.
        let needed = index.needs.get(path.as_str()).into_iter().flatten().rev();
        for path in needed.map(String::as_str).chain([path.as_str()]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
        .into_iter()
        .map(|path| load(directory, path))
        .collect()
}

/// `modules.dep` and `modules.builtin`.
struct Index {
    paths: HashMap<String, String>,
    needs: HashMap<String, Vec<String>>,
    builtin: Vec<String>,
}

impl Index {
    fn read(directory: &Path) -> Result<Index, ModuleError> {
        let path = directory.join("modules.dep");
        let text = fs::read_to_string(&path).map_err(|source| ModuleError::NoIndex {
            path: path.display().to_string(),
            source,
        })?;
        let (mut paths, mut needs) = (HashMap::new(), HashMap::new());
        for (file, list) in text.lines().filter_map(|line| line.split_once(':')) {
            paths.insert(module_name(file), file.to_owned());
            needs.insert(
                file.to_owned(),
                list.split_whitespace().map(str::to_owned).collect(),
            );
        }
        let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
        Ok(Index {
            paths,
            needs,
            builtin: builtin.lines().map(module_name).collect(),
        })
    }
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

fn load(directory: &Path, path: &str) -> Result<Module, ModuleError> {
    if !lies_inside(Path::new(path)) {
        let path = path.to_owned();
        return Err(ModuleError::Outside { path });
    }
    let file: PathBuf = directory.join(path);
    let shown = || file.display().to_string();
    let packed = read(&file).map_err(|source| ModuleError::Read {
        path: shown(),
        source,
    })?;
    let content = unpack(&packed).map_err(|source| ModuleError::Read {
        path: shown(),
        source,
    })?;
    if content.len() as u64 > LIMIT {
        return Err(ModuleError::TooLarge { path: shown() });
    }
    Ok(Module {
        name: module_name(path),
        content,
    })
}

/// A relative path that does not lead up.
fn lies_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
}

/// A file's content, one byte past the limit at most.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(file)?
        .take(LIMIT + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match packed {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            crate::xz::reader(packed)?
                .take(LIMIT + 1)
                .read_to_end(&mut content)?;
        }
        [0x1f, 0x8b, ..] => {
            flate2::read::GzDecoder::new(packed)
                .take(LIMIT + 1)
                .read_to_end(&mut content)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
            let decoder = decoder.map_err(std::io::Error::other)?;
            decoder.take(LIMIT + 1).read_to_end(&mut content)?;
        }
        plain => content.extend(plain),
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b-x", "c"] {
            fs::write(root.path().join(format!("{name}.ko")), name).unwrap();
        }
        fs::write(
            root.path().join("modules.dep"),
            "a.ko: b-x.ko c.ko\nb-x.ko: c.ko\nc.ko:\n",
        )
        .unwrap();
        fs::write(root.path().join("modules.builtin"), "kernel/ext4.ko\n").unwrap();
        root
    }

    fn names(wanted: &[&str]) -> Vec<String> {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let found = select(modules().path(), &wanted).unwrap();
        found.into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(names(&["a", "b_x"]), ["c", "b_x", "a"]);
    }

    #[test]
    fn built_in_modules_give_nothing() {
        assert!(names(&["ext4"]).is_empty());
    }

    #[test]
    fn an_index_that_leads_out_of_the_directory_is_refused() {
        for outside in ["../secret.ko", "/etc/secret.ko", "kernel/../../secret.ko"] {
            let root = modules();
            fs::write(root.path().join("modules.dep"), format!("{outside}:\n")).unwrap();
            let error = select(root.path(), &["secret".to_owned()]).unwrap_err();
            let named = matches!(&error, ModuleError::Outside { path } if path == outside);
            assert!(named, "{error}");
        }
    }

    #[test]
    fn unknown_modules_are_named() {
        let error = select(modules().path(), &["nope".to_owned()]).unwrap_err();
        assert!(matches!(error, ModuleError::Unknown { name } if name == "nope"));
    }
}
