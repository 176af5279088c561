//! Seven integer kernels and one that walks page tables, run on demand: a line with a kernel's number
//! in, a line `=NUMBER CHECKSUM NANOSECONDS` out. One static program runs on the host and as init of a guest, so that all execute the same
//! instructions. Built by `guests.py`, without vector instructions. If its last argument is a number,
//! it runs on that processor alone.

use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::time::Instant;

/// A small generator (xorshift64*), the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn mixed(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(1, |sum, byte| mixed(sum, u64::from(*byte)))
}

/// Words in random order, some far more often than others, as in a language.
fn text(length: usize) -> Vec<u8> {
    let mut random = Random(7);
    let words: Vec<Vec<u8>> = (0..200)
        .map(|_| {
            let letters = 2 + random.next() as usize % 9;
            (0..letters).map(|_| b'a' + (random.next() % 26) as u8).collect()
        })
        .collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        let bits = random.next() as usize;
        text.extend(&words[(bits % 200) * (bits / 200 % 200) / 200]);
        text.push(b' ');
    }
    text.truncate(length);
    text
}

const WINDOW: usize = 0xffff;
const SHORTEST: usize = 4;

fn slot(input: &[u8], at: usize) -> usize {
    let four = u32::from_le_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]);
    (four.wrapping_mul(0x9e37_79b1) >> 19) as usize
}

/// A literal is 0 and a byte; a match is its length, at most 255, and two bytes of distance.
fn compress(input: &[u8], output: &mut Vec<u8>) {
    let mut last = [usize::MAX; 1 << 13];
    let mut at = 0;
    while at < input.len() {
        let mut length = 0;
        if at + SHORTEST <= input.len() {
            let slot = slot(input, at);
            let from = last[slot];
            last[slot] = at;
            if from != usize::MAX && at - from <= WINDOW {
                let most = (input.len() - at).min(255);
                while length < most && input[from + length] == input[at + length] {
                    length += 1;
                }
                if length >= SHORTEST {
                    let distance = (at - from) as u16;
                    output.push(length as u8);
                    output.extend(distance.to_le_bytes());
                }
            }
        }
        if length < SHORTEST {
            output.extend([0, input[at]]);
            length = 1;
        }
        at += length;
    }
}

fn decompress(input: &[u8], output: &mut Vec<u8>) {
    let mut at = 0;
    while at < input.len() {
        let length = usize::from(input[at]);
        if length == 0 {
            output.push(input[at + 1]);
            at += 2;
            continue;
        }
        let distance = usize::from(u16::from_le_bytes([input[at + 1], input[at + 2]]));
        let from = output.len() - distance;
        for index in from..from + length {
            output.push(output[index]);
        }
        at += 3;
    }
}

fn lz_compress() -> u64 {
    let input = text(1 << 18);
    let mut output = Vec::with_capacity(1 << 19);
    for _ in 0..24 {
        output.clear();
        compress(black_box(&input), &mut output);
    }
    digest(&output)
}

fn lz_decompress() -> u64 {
    let input = text(1 << 18);
    let (mut packed, mut output) = (Vec::new(), Vec::with_capacity(1 << 18));
    compress(&input, &mut packed);
    for _ in 0..24 {
        output.clear();
        decompress(black_box(&packed), &mut output);
    }
    assert!(output == input);
    digest(&output)
}

fn sort(values: &mut [u32], less: fn(&u32, &u32) -> bool) {
    let mut rest = values;
    while rest.len() > 1 {
        let pivot = rest[rest.len() / 2];
        let (mut low, mut high) = (0, rest.len() - 1);
        loop {
            while less(&rest[low], &pivot) {
                low += 1;
            }
            while less(&pivot, &rest[high]) {
                high -= 1;
            }
            if low >= high {
                break;
            }
            rest.swap(low, high);
            low += 1;
            high -= 1;
        }
        let (left, right) = rest.split_at_mut(low);
        sort(left, less);
        rest = right;
    }
}

fn quicksort() -> u64 {
    let less: fn(&u32, &u32) -> bool = black_box(|a, b| a < b);
    let mut sum = 0;
    for seed in 1..6 {
        let mut random = Random(seed);
        let mut values: Vec<u32> = (0..60_000).map(|_| random.next() as u32).collect();
        sort(&mut values, less);
        assert!(values.is_sorted());
        sum = values.iter().fold(sum, |sum, value| mixed(sum, u64::from(*value)));
    }
    sum
}

#[derive(Clone, Copy)]
struct Node {
    key: u32,
    count: u32,
    sides: [u32; 2],
}

fn insert(nodes: &mut Vec<Node>, key: u32) {
    let new = nodes.len() as u32;
    let mut at = 0;
    while let Some(node) = nodes.get_mut(at as usize) {
        if node.key == key {
            node.count += 1;
            return;
        }
        let side = &mut node.sides[usize::from(key > node.key)];
        if *side == 0 {
            *side = new;
            break;
        }
        at = *side;
    }
    nodes.push(Node {
        key,
        count: 1,
        sides: [0; 2],
    });
}

fn binary_tree() -> u64 {
    let mut sum = 0;
    for seed in 1..4 {
        let (mut random, mut nodes) = (Random(seed), Vec::new());
        for _ in 0..100_000 {
            insert(&mut nodes, black_box(random.next() as u32 & 0x7fff));
        }
        for node in &nodes {
            sum = mixed(sum, u64::from(node.key) << 32 | u64::from(node.count));
        }
    }
    sum
}

fn crc32() -> u64 {
    let table: Vec<u32> = (0..256)
        .map(|byte| {
            (0..8).fold(byte, |crc, _| {
                crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
            })
        })
        .collect();
    let input = text(1 << 18);
    let mut crc = !0;
    for _ in 0..60 {
        for byte in black_box(&input) {
            crc = table[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
        }
    }
    u64::from(!crc)
}

fn quarter(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (left, right) in [(16, 12), (8, 7)] {
        state[a] = state[a].wrapping_add(state[b]);
        state[d] = (state[d] ^ state[a]).rotate_left(left);
        state[c] = state[c].wrapping_add(state[d]);
        state[b] = (state[b] ^ state[c]).rotate_left(right);
    }
}

/// The rounds of the ChaCha stream cipher (RFC 8439, section 2.1).
fn arx() -> u64 {
    let mut state: [u32; 16] = std::array::from_fn(|i| i as u32 * 0x0101_0101);
    for _ in 0..800_000 {
        for start in 0..4 {
            quarter(&mut state, [start, start + 4, start + 8, start + 12]);
        }
        for start in 0..4 {
            let turned = |row: usize| row * 4 + (start + row) % 4;
            quarter(&mut state, [turned(0), turned(1), turned(2), turned(3)]);
        }
        state = black_box(state);
    }
    state.iter().fold(0, |sum, word| mixed(sum, u64::from(*word)))
}

fn is_less(a: &[u8], b: &[u8]) -> bool {
    for (left, right) in a.iter().zip(b) {
        if left != right {
            return left < right;
        }
    }
    a.len() < b.len()
}

fn strings() -> u64 {
    let input = text(1 << 12);
    let words: Vec<&[u8]> = input.chunks(23).collect();
    let mut sum = 0;
    for round in 0..800u64 {
        let mut least = 0u64;
        for a in black_box(&words) {
            for b in &words[..words.len() / 2] {
                least += u64::from(is_less(&a[..], b));
            }
        }
        sum = mixed(sum, least + round);
    }
    sum
}

const PAGES: usize = 1 << 14;
const PAGE_WORDS: usize = 4096 / 8;
const PR_SET_THP_DISABLE: i32 = 41;

unsafe extern "C" {
    fn prctl(option: i32, ...) -> i32;
    fn sched_setaffinity(pid: i32, size: usize, mask: *const u64) -> i32;
}

/// This thread runs on that processor, of the first 64, alone.
fn stay_on(processor: u32) -> io::Result<()> {
    let mask = 1u64.checked_shl(processor).unwrap_or_default();
    // SAFETY: the mask has the size that is told, and is only read.
    match unsafe { sched_setaffinity(0, size_of_val(&mask), &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One word of each of 16,384 pages of 4 KiB, in an order that no TLB follows.
fn page_walks() -> u64 {
    // SAFETY: the call takes four numbers and changes how memory is mapped from now on.
    unsafe { prctl(PR_SET_THP_DISABLE, 1u64, 0u64, 0u64, 0u64) };
    let mut words = vec![0u64; PAGES * PAGE_WORDS];
    let (mut page, mut sum) = (0usize, 0);
    for turn in 0..40 * PAGES as u64 {
        // Every page once in each round (Hull and Dobell's conditions).
        page = (page * 5 + 7_919) % PAGES;
        let word = &mut words[page * PAGE_WORDS + page % PAGE_WORDS];
        sum = mixed(sum, *word);
        *word = turn;
    }
    sum
}

const KERNELS: [fn() -> u64; 8] =
    [lz_compress, lz_decompress, quicksort, binary_tree, crc32, arx, strings, page_walks];

fn main() -> io::Result<()> {
    if let Some(processor) = std::env::args().last().and_then(|word| word.parse().ok()) {
        stay_on(processor)?;
    }
    let mut output = io::stdout();
    writeln!(output, "=ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let number = line.trim().parse::<usize>().ok();
        if let Some((number, kernel)) = number.and_then(|n| Some((n, KERNELS.get(n)?))) {
            let begun = Instant::now();
            let sum = kernel();
            let took = begun.elapsed().as_nanos();
            writeln!(output, "={number} {sum:016x} {took}")?;
            output.flush()?;
        }
    }
    Ok(())
}
