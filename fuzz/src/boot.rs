//! Requests to boot an image, and what a plan must keep to.

use vmlet_boot::{
    BootError, BootPlan, BootRequest, Load, MemoryKind, MemoryRange, Mode, ProtocolChoice, packed, plan,
    unpack,
};

use crate::Input;

const MIB: u64 = 1 << 20;
const MODULE: [u8; 5000] = [0x5a; 5000];
const COMMAND_LINE: &str = "console=ttyS0 root=/dev/ram0 quiet panic=-1 noapictimer";
/// The boot protocols' tables and the command line, in bytes.
const TABLES: u64 = 0x3_0000;
/// What every protocol's first page tables or flat segments reach.
const REACH: u64 = 1 << 32;

/// How many bytes in front of an image say how to boot it.
pub const OPTIONS: usize = 4;

/// Boots the image that follows [`OPTIONS`] bytes, as they say, and checks the plan.
pub fn boot(input: &[u8]) {
    let mut input = Input::new(input);
    let protocol = input.choose(&[
        ProtocolChoice::Auto,
        ProtocolChoice::Linux64,
        ProtocolChoice::Pvh,
        ProtocolChoice::BzImage,
    ]);
    let memory = memory_map(input.byte());
    let extras = input.byte();
    let modules = vec![&MODULE[..]; usize::from(extras >> 2)];
    let cmdline = COMMAND_LINE.repeat(usize::from(input.byte()) % 64);
    let kernel = input.rest();
    let unpacked = match packed(kernel, protocol).and_then(|found| found.map(unpack).transpose()) {
        Ok(unpacked) => unpacked,
        Err(error) => return check_error(&error),
    };
    let request = BootRequest {
        kernel,
        vmlinux: unpacked.as_deref(),
        initramfs: (extras & 1 != 0).then_some(&MODULE[..]),
        modules: if extras & 2 != 0 { &modules } else { &[] },
        cmdline: &cmdline,
        memory: &memory,
        rsdp: Some(0xe_0000),
        protocol,
    };
    match plan(&request) {
        Ok(plan) => check(&request, &plan),
        Err(error) => check_error(&error),
    }
}

/// A board's map of a few sizes, or one of many small ranges.
fn memory_map(choice: u8) -> Vec<MemoryRange> {
    let range = |gpa, len, kind| MemoryRange { gpa, len, kind };
    if choice >= 0x80 {
        let small = |index| range(u64::from(index) << 20, MIB / 2, MemoryKind::Ram);
        return (0..choice).map(small).collect();
    }
    let mut map = vec![
        range(0, 0x9_fc00, MemoryKind::Ram),
        range(0x9_fc00, 0x4_0400, MemoryKind::Reserved),
        range(0xe_0000, 0x2_0000, MemoryKind::Acpi),
    ];
    let megabytes = [0, 15, 255, 2047, 3071][usize::from(choice) % 5];
    if megabytes > 0 {
        map.push(range(MIB, megabytes * MIB, MemoryKind::Ram));
    }
    if choice & 0x40 != 0 {
        map.push(range(REACH, 2048 * MIB, MemoryKind::Ram));
    }
    map
}

fn check(request: &BootRequest<'_>, plan: &BootPlan<'_>) {
    let mut ranges: Vec<_> = plan.loads.iter().map(range).collect();
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    for (start, end) in &ranges {
        assert!(
            in_ram(request, *start, *end),
            "{start:#x}..{end:#x} is no RAM"
        );
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "loads overlap: {pair:#x?}");
    }
    let modules = request
        .modules
        .iter()
        .map(|module| module.len())
        .sum::<usize>();
    let given = modules + request.initramfs.map_or(0, <[u8]>::len) + request.cmdline.len();
    let loaded = plan
        .loads
        .iter()
        .map(|load| load.bytes.len())
        .sum::<usize>();
    // A compressed kernel may be larger than its image; RAM bounds it then.
    let ram: u64 = request.memory.iter().map(|range| range.len).sum();
    assert!(loaded as u64 <= ram.max(given as u64 + TABLES));
    let entry = &plan.entry;
    assert!(
        in_ram(request, entry.rip, entry.rip + 1),
        "no code at {:#x}",
        entry.rip
    );
    assert!(entry.rip < REACH, "nothing is mapped at {:#x}", entry.rip);
    let held = |gpa: u64| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&gpa))
    };
    assert!(held(entry.gdt) && held(entry.gdt + u64::from(entry.gdt_limit)));
    assert!(held(entry.rbx.max(entry.rsi)), "no boot parameters");
    if let Mode::Long64 { cr3 } = entry.mode {
        assert!(held(cr3) && held(cr3 + 0x5fff));
    }
}

fn range(load: &Load<'_>) -> (u64, u64) {
    let len = load.bytes.len() as u64 + load.zeros;
    (
        load.gpa,
        load.gpa.checked_add(len).expect("a load wraps around"),
    )
}

fn in_ram(request: &BootRequest<'_>, start: u64, end: u64) -> bool {
    let ram = |range: &&MemoryRange| range.kind == MemoryKind::Ram;
    let holds = |range: &MemoryRange| range.gpa <= start && end <= range.gpa + range.len;
    request.memory.iter().filter(ram).any(holds)
}

fn check_error(error: &BootError) {
    let text = error.to_string();
    assert!((10..1000).contains(&text.len()), "{text}");
}
