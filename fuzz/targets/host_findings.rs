//! What the host says of itself in procfs and sysfs: any text in any of the files.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, Tree, seeds};
use vmlet_host::{Cpu, HostMemory, HostRoot, State, findings};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const FILES: [&str; 10] = [
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/cgroup",
    "proc/self/limits",
    "proc/self/mounts",
    "proc/interrupts",
    "etc/group",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/module/kvm/parameters/nx_huge_pages",
    "sys/fs/cgroup/a/memory.max",
];

thread_local! {
    static TREE: RefCell<Tree> = RefCell::new(Tree::new("host"));
}

fuzz_target!(init: seeds::plant("host_findings"), |data: &[u8]| {
    let mut texts = data.split(|byte| *byte == 0xff);
    TREE.with_borrow_mut(|tree| {
        for name in FILES {
            tree.write(name, texts.next().unwrap_or_default());
        }
        check(&HostRoot::new(tree.root()));
    });
});

fn check(root: &HostRoot) {
    let found = findings(root);
    let mut topics: Vec<_> = found.iter().map(|one| one.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    assert_eq!(topics.len(), found.len(), "a topic comes twice");
    for one in &found {
        if matches!(one.state, State::No | State::Warning) {
            assert!(one.cause.is_some() && one.remedy.is_some(), "{one:?}");
        }
    }
    if let Some(memory) = HostMemory::read(root) {
        assert!(memory.ceiling() <= memory.total);
    }
    let _ = Cpu::read(root).map(|cpu| cpu.virtualizes());
}
