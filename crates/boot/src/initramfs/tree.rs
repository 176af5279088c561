//! A directory of the host as an archive.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{Archive, ArchiveError, Node};

/// Adds what lies in `root`. Symbolic links are kept as links and never followed; sockets, pipes
/// and device nodes are left out.
pub fn add_directory(archive: &mut Archive, root: &Path) -> Result<(), ArchiveError> {
    if !root.is_dir() {
        return Err(ArchiveError::NotADirectory {
            path: root.display().to_string(),
        });
    }
    walk(archive, root, "")
}

fn walk(archive: &mut Archive, directory: &Path, prefix: &str) -> Result<(), ArchiveError> {
    for entry in fs::read_dir(directory).map_err(|source| unreadable(directory, source))? {
        let entry = entry.map_err(|source| unreadable(directory, source))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = fs::symlink_metadata(&path).map_err(|source| unreadable(&path, source))?;
        let (kind, mode) = (metadata.file_type(), metadata.mode());
        if kind.is_dir() {
            archive.add(&name, Node::Directory { mode })?;
            walk(archive, &path, &format!("{name}/"))?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(|source| unreadable(&path, source))?;
            archive.add(
                &name,
                Node::Symlink {
                    target: target.to_string_lossy().into_owned(),
                },
            )?;
        } else if !kind.is_fifo() && !kind.is_socket() && !kind.is_char_device() && kind.is_file() {
            let content = fs::read(&path).map_err(|source| unreadable(&path, source))?;
            archive.add(&name, Node::File { mode, content })?;
        }
    }
    Ok(())
}

fn unreadable(path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Read {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_directories_and_links_are_packed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/init"), b"#!").unwrap();
        symlink("/etc/passwd", root.path().join("link")).unwrap();
        let mut archive = Archive::new();
        add_directory(&mut archive, root.path()).unwrap();
        let bytes = archive.finish().unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(has(b"bin/init\0") && has(b"link\0") && has(b"/etc/passwd"));
        assert!(!has(b"root:x:0"));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = add_directory(&mut Archive::new(), Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"));
    }
}
