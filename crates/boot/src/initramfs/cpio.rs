//! The newc archive format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;

use thiserror::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// Why an archive cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The format counts bytes of a file in 32 bits.
    #[error("{name} has {len} bytes; an initramfs takes files below 4 GiB")]
    TooLarge {
        /// The file.
        name: String,
        /// Its bytes.
        len: u64,
    },
    /// A name that is absolute, empty or leads out of the archive.
    #[error("{name:?} is no name for a file in an initramfs: give a relative path without \"..\"")]
    BadName {
        /// The name.
        name: String,
    },
    /// A file of the host cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The directory to pack is not one.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
}

/// What stands in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file with its permission bits.
    File {
        /// Permission bits.
        mode: u32,
        /// Content.
        content: Vec<u8>,
    },
    /// A directory with its permission bits.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: String,
    },
    /// A character device.
    Character {
        /// Permission bits.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An archive under construction: names in order, each once; directories above a name are added.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds or replaces `name`, a relative path.
    pub fn add(&mut self, name: &str, node: Node) -> Result<(), ArchiveError> {
        let bad =
            |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
        if name.split('/').any(bad) {
            return Err(ArchiveError::BadName {
                name: name.to_owned(),
            });
        }
        for (end, _) in name.match_indices('/') {
            if let Some(above) = name.get(..end) {
                let directory = Node::Directory { mode: 0o755 };
                self.nodes.entry(above.to_owned()).or_insert(directory);
            }
        }
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// The archive's bytes. Owner and times are zero, so that equal content gives equal bytes.
    pub fn finish(&self) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        for (index, (name, node)) in self.nodes.iter().enumerate() {
            let inode = u32::try_from(index + 1).unwrap_or(u32::MAX);
            write(&mut bytes, name, node, inode)?;
        }
        write(
            &mut bytes,
            TRAILER,
            &Node::File {
                mode: 0,
                content: Vec::new(),
            },
            0,
        )?;
        Ok(bytes)
    }
}

fn write(bytes: &mut Vec<u8>, name: &str, node: &Node, inode: u32) -> Result<(), ArchiveError> {
    let (mode, content, (major, minor)) = match node {
        Node::File { mode, content } => (REGULAR | mode & 0o7777, &content[..], (0, 0)),
        Node::Directory { mode } => (DIRECTORY | mode & 0o7777, &[][..], (0, 0)),
        Node::Symlink { target } => (SYMLINK | 0o777, target.as_bytes(), (0, 0)),
        Node::Character { mode, major, minor } => {
            (CHARACTER | mode & 0o7777, &[][..], (*major, *minor))
        }
    };
    let size = u32::try_from(content.len()).map_err(|_| ArchiveError::TooLarge {
        name: name.to_owned(),
        len: content.len() as u64,
    })?;
    let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    bytes.extend(MAGIC.as_bytes());
    for field in [
        inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ] {
        bytes.extend(format!("{field:08x}").as_bytes());
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(content);
    pad(bytes);
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Node {
        Node::File {
            mode: 0o644,
            content: content.to_vec(),
        }
    }

    #[test]
    fn headers_and_content_are_aligned_to_four_bytes() {
        let mut archive = Archive::new();
        archive.add("a/b", file(b"xyz")).unwrap();
        let bytes = archive.finish().unwrap();
        let starts: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, w)| *w == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|at| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_above_a_file_come_before_it() {
        let mut archive = Archive::new();
        archive.add("usr/bin/x", file(b"")).unwrap();
        let names: Vec<_> = archive.nodes.keys().cloned().collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x"]);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["", "/etc/passwd", "../x", "a//b", "a/./b", "a\0b"] {
            let error = Archive::new().add(name, file(b"")).unwrap_err();
            assert!(matches!(error, ArchiveError::BadName { .. }), "{name:?}");
        }
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let make = |names: [&str; 2]| {
            let mut archive = Archive::new();
            names
                .iter()
                .for_each(|name| archive.add(name, file(name.as_bytes())).unwrap());
            archive.finish().unwrap()
        };
        assert_eq!(make(["a", "b"]), make(["b", "a"]));
    }
}
