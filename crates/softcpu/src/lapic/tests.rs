use super::*;

fn lapic() -> Lapic {
    let lapic = Lapic::new(0, Arc::default());
    lapic.write(SVR, 0x1ff, 0);
    lapic
}

#[test]
fn the_highest_class_goes_first_and_blocks_its_own() {
    let lapic = lapic();
    lapic.interrupt(0x31, false);
    lapic.interrupt(0x42, false);
    assert_eq!(lapic.next(), Some(0x42));
    lapic.take(0x42);
    assert_eq!(lapic.next(), None);
    lapic.write(EOI, 0, 0);
    assert_eq!(lapic.next(), Some(0x31));
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let lapic = lapic();
    lapic.interrupt(0x31, false);
    lapic.write(TPR, 0x30, 0);
    assert_eq!(lapic.next(), None);
    lapic.write(TPR, 0x20, 0);
    assert_eq!(lapic.next(), Some(0x31));
}

#[test]
fn only_a_level_interrupts_end_is_told() {
    let lapic = lapic();
    for (level, told) in [(false, None), (true, Some(0x55))] {
        lapic.interrupt(0x55, level);
        lapic.take(0x55);
        assert_eq!(lapic.write(EOI, 0, 0), told);
    }
}

#[test]
fn a_one_shot_counts_down_and_a_period_begins_again() {
    let lapic = lapic();
    lapic.write(DIVIDE, 0xb, 0);
    lapic.write(LVT_TIMER, 0x66, 0);
    lapic.write(COUNT, 100, 0);
    assert_eq!(lapic.deadline(), Some(100 * CRYSTAL_NS));
    assert_eq!(lapic.read(CURRENT, 50 * CRYSTAL_NS), 50);
    lapic.expire(100 * CRYSTAL_NS);
    assert_eq!((lapic.next(), lapic.deadline()), (Some(0x66), None));
    lapic.write(LVT_TIMER, 0x66 | TIMER_PERIODIC, 0);
    lapic.write(COUNT, 100, 0);
    lapic.expire(250 * CRYSTAL_NS);
    assert_eq!(lapic.deadline(), Some(300 * CRYSTAL_NS));
}

#[test]
fn a_message_reaches_the_apic_it_names_only() {
    let apics = Arc::new(Apics::default());
    let both: Vec<_> = (0..2)
        .map(|id| Arc::new(Lapic::new(id, Arc::default())))
        .collect();
    for lapic in &both {
        lapic.write(SVR, 0x1ff, 0);
        apics.add(Arc::clone(lapic));
    }
    let to_one = MsiMessage {
        address: 0xfee0_1000,
        data: 0x44,
    };
    assert!(apics.message(to_one));
    assert_eq!([both[0].next(), both[1].next()], [None, Some(0x44)]);
    assert!(!apics.message(MsiMessage {
        address: 0xfee0_5000,
        data: 0x44
    }));
}

#[test]
fn a_masked_timer_is_silent() {
    let lapic = lapic();
    lapic.write(LVT_TIMER, 0x66 | MASKED, 0);
    lapic.write(COUNT, 1, 0);
    lapic.expire(u64::MAX / 2);
    assert_eq!(lapic.next(), None);
}

#[test]
fn the_page_survives_saving() {
    let lapic = lapic();
    lapic.write(LDR, 0x0200_0000, 0);
    lapic.interrupt(0x71, true);
    let other = Lapic::new(0, Arc::default());
    other.restore(&lapic.save(0), 0);
    assert_eq!(
        (other.read(LDR, 0), other.next()),
        (0x0200_0000, Some(0x71))
    );
}

#[test]
fn the_longest_period_does_not_overflow() {
    let lapic = lapic();
    lapic.write(DIVIDE, 0xa, 0);
    lapic.write(LVT_TIMER, 0x66 | TIMER_PERIODIC, 0);
    lapic.write(COUNT, u32::MAX, 0);
    assert_eq!(lapic.read(CURRENT, 0), u32::MAX);
    lapic.expire(u64::MAX);
    assert!(lapic.deadline().is_some());
}

#[test]
fn a_timer_saved_in_its_last_moment_goes_on_elsewhere() {
    let lapic = lapic();
    lapic.write(DIVIDE, 0xb, 0);
    lapic.write(LVT_TIMER, 0x66 | TIMER_PERIODIC, 0);
    lapic.write(COUNT, 100, 0);
    for late in [100 * CRYSTAL_NS - 1, 100 * CRYSTAL_NS, 101 * CRYSTAL_NS] {
        let other = Lapic::new(0, Arc::default());
        other.restore(&lapic.save(late), 0);
        assert_eq!(other.deadline(), Some(CRYSTAL_NS), "{late}");
    }
}

/// Whatever a guest writes to the page, at whatever time: no arithmetic overflows.
#[test]
fn random_writes_at_random_times() {
    let lapic = lapic();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let (at, value, now) = (
            random() as usize % PAGE,
            random(),
            random() >> (random() % 64),
        );
        lapic.write(at, value as u32 >> (value % 32), now);
        lapic.set_deadline((value % 3 == 0).then_some(value));
        lapic.read(at, now);
        lapic.expire(random() >> (random() % 64));
        if value % 16 == 0 {
            let mut page = lapic.save(now);
            page[at] ^= value as u8;
            lapic.restore(&page, now);
        }
        if let Some(vector) = lapic.next() {
            lapic.take(vector);
        }
    }
}
