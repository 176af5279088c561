//! Tests whose outcome depends on the engine, not on what a processor offers.

/// A test that does not run on an engine, or expects something else there.
#[derive(Debug)]
pub(crate) struct Difference {
    /// "soft", "kvm", "lab": KVM on any processor that a machine of the lab emulates, or such as
    /// "lab intel": on that of one of these machines.
    engine: &'static str,
    test: &'static str,
    /// It runs there and asks [`super::Place::differs`].
    pub(crate) runs: bool,
    pub(crate) reason: &'static str,
}

/// It notes the trap of a step before the instruction is carried out, and saves what is noted as a
/// pending exception with every exit: one that the instruction's fetch makes comes back as its trap.
const STEPS_EARLY: &str = "the emulator traps before the first instruction of a step";

const DIFFERENCES: [Difference; 13] = [
    Difference {
        engine: "soft",
        test: "ends::memory_the_host_cannot_provide",
        runs: false,
        reason: "the software engine reads guest memory as this process does, so a trusted file \
                 that is cut short ends the process (SIGBUS), as it does for any other reader",
    },
    Difference {
        engine: "soft",
        test: "mmio::a_jump_to_where_no_memory_is",
        runs: true,
        reason: "where no memory is, the software engine ends the run with the guest-physical \
                 address; KVM emulates an instruction of no bytes",
    },
    Difference {
        engine: "kvm",
        test: "interpreter_gaps::popcnt_crc32_rdtscp_verw_lar_lsl_stac_clac_invpcid_monitor_at_cpl0",
        runs: true,
        reason: "KVM carries MONITOR out as a no-operation where CPUID does not offer it; the \
                 software engine raises #UD as a processor does",
    },
    Difference {
        engine: "kvm",
        test: "debug::the_guests_own_port_breakpoint",
        runs: false,
        reason: "KVM carries port accesses out itself and looks at no I/O breakpoint",
    },
    Difference {
        engine: "kvm",
        test: "hostile_code::ever_new_code_takes_bounded_memory",
        runs: false,
        reason: "KVM keeps no decoded code, and takes minutes where it interprets",
    },
    Difference {
        engine: "lab",
        test: "hostile_code::an_instruction_that_rewrites_the_next",
        runs: false,
        reason: "the emulated processor runs what it has translated to the next branch",
    },
    Difference {
        engine: "lab",
        test: "hostile_code::code_across_a_page_rewritten_by_the_host_while_it_runs",
        runs: false,
        reason: "the emulated processor was seen to run on what it has translated of two pages after \
                 another processor's write",
    },
    Difference {
        engine: "lab",
        test: "exceptions::a_misaligned_operand_where_alignment_is_checked",
        runs: false,
        reason: "the emulated processor checks no alignment",
    },
    Difference {
        engine: "lab",
        test: "exceptions::aligned_operands_pass_where_alignment_is_checked",
        runs: false,
        reason: "the emulated processor checks no alignment",
    },
    Difference {
        engine: "kvm",
        test: "ends::modes_the_engine_lacks_are_named",
        runs: false,
        reason: "KVM carries task switches and virtual-8086 mode out",
    },
    Difference {
        engine: "lab intel",
        test: "debug::single_steps_at_cpl0",
        runs: false,
        reason: STEPS_EARLY,
    },
    Difference {
        engine: "lab intel",
        test: "debug::single_steps_at_cpl3",
        runs: false,
        reason: STEPS_EARLY,
    },
    Difference {
        engine: "lab intel",
        test: "debug::a_step_of_a_paused_vcpu_takes_its_access_along",
        runs: false,
        reason: STEPS_EARLY,
    },
];

/// What is known of `test` on `engine`.
pub(crate) fn difference(engine: &str, test: &str) -> Option<&'static Difference> {
    let lab = std::env::var("VMLET_LAB").ok().filter(|_| engine == "kvm");
    let flavour = lab.as_ref().map(|name| format!("lab {name}"));
    let here = |known: &&Difference| {
        known.engine == engine
            || lab.is_some() && known.engine == "lab"
            || flavour.as_deref() == Some(known.engine)
    };
    DIFFERENCES
        .iter()
        .filter(here)
        .find(|known| known.test == test)
}
