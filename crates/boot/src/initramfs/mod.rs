//! Initramfs images made by us: a newc archive of files, a directory, or kernel modules.
//!
//! Not supported: compression of the archive, hard links, device numbers other than those of nodes
//! asked for.

mod cpio;
mod modules;
mod tree;

pub use cpio::{Archive, ArchiveError, Node};
pub use modules::{Module, ModuleError, select};
pub use tree::add_directory;
