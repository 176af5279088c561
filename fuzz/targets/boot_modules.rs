//! Kernel modules: `modules.dep`, `modules.builtin`, packed modules. No path leads out of the
//! directory.
#![no_main]

use std::{cell::RefCell, str};

use libfuzzer_sys::fuzz_target;
use vmlet_boot::initramfs::select;
use vmlet_fuzz::{MemoryCap, Tree, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(1024);

const SECRET: &[u8] = b"not to be read";

thread_local! {
    static TREE: RefCell<Tree> = RefCell::new(Tree::new("modules"));
}

fuzz_target!(init: seeds::plant("boot_modules"), |data: &[u8]| {
    // Index, built-in modules, names asked for and the module's file, each ended by a byte that
    // UTF-8 does not have.
    let mut parts = data.splitn(4, |byte| *byte == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let (index, builtin, names, module) = (next(), next(), next(), next());
    TREE.with_borrow_mut(|tree| {
        tree.write("secret", SECRET);
        tree.write("modules/modules.dep", index);
        tree.write("modules/modules.builtin", builtin);
        tree.write("modules/a.ko", module);
        let names = str::from_utf8(names).unwrap_or_default();
        let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        match select(&tree.root().join("modules"), &names) {
            Ok(modules) => {
                assert!(modules.iter().all(|module| module.content != SECRET));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
});
