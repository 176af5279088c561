use super::*;

fn length(bytes: &[u8], width: Width) -> u8 {
    decode(bytes, 0, width).unwrap().op.len()
}

#[test]
fn lengths_follow_prefixes_and_modes() {
    let long = Width::Bits64;
    for (bytes, expected) in [
        (&[0x90][..], 1),
        (&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], 10),
        (&[0x66, 0xb8, 1, 2], 4),
        (&[0x8b, 0x05, 1, 2, 3, 4], 6),
        (&[0x8b, 0x84, 0x24, 1, 2, 3, 4], 7),
        (&[0x0f, 0xba, 0xe0, 3], 4),
        (&[0xf7, 0x00, 1, 2, 3, 4], 6),
        (&[0xc8, 1, 2, 3], 4),
    ] {
        assert_eq!(length(bytes, long), expected, "{bytes:02x?}");
    }
    assert_eq!(length(&[0xb8, 1, 2], Width::Bits16), 3);
    assert_eq!(length(&[0xea, 1, 2, 3, 4, 5, 6], Width::Bits32), 7);
    assert_eq!(length(&[0x8b, 0x06, 1, 2], Width::Bits16), 4);
}

#[test]
fn a_rip_relative_address_counts_from_the_end_of_the_instruction() {
    let decoded = decode(
        &[0xc7, 0x05, 0x10, 0, 0, 0, 1, 0, 0, 0],
        0x1000,
        Width::Bits64,
    )
    .unwrap();
    assert_eq!(decoded.op.disp, 0x1000 + 10 + 0x10);
}

#[test]
fn an_instruction_cut_short_wants_more_and_a_long_one_is_refused() {
    let long = Width::Bits64;
    assert_eq!(decode(&[0x48, 0x8b], 0, long).unwrap_err(), Short::More);
    assert_eq!(decode(&[0x66; 16], 0, long).unwrap_err(), Short::TooLong);
}

#[test]
fn every_start_of_every_byte_decodes_to_something() {
    for width in [Width::Bits16, Width::Bits32, Width::Bits64] {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let mut bytes = [0x11; 15];
                (bytes[0], bytes[1]) = (first, second);
                assert!(decode(&bytes, 0, width).is_ok(), "{first:02x} {second:02x}");
            }
        }
    }
}
