//! Runs a template's cases on both sides.

use super::{
    case::{Case, Sides},
    compare::{self, Side},
    encode::{Encoded, Site, encode},
    guest::Guest,
    host::{self, Host},
    layout::{CODE, CODE_PAGES, DATA, PAGE, PAGES, Rights},
    state::{End, Registers},
    target,
    template::{Immediate, Need, Operand, Template, Unit},
    vendor,
};
use crate::{
    exec::string::order,
    random::{Random, cases},
};

/// Cases of one encoding.
const PER_PLACEMENT: u64 = 50;
/// How far from a place memory is compared after each case.
const AROUND: u64 = 64;
const GS_BASE: u64 = 0x0765_4321;
/// Failures of a template that are told in full.
const TOLD: usize = 3;

/// Both sides.
pub(crate) struct Bench {
    host: Host,
    guest: Guest,
    sides: Sides,
    bases: [u64; 2],
    random: Random,
    before: Registers,
    native: Registers,
    here: Registers,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) templates: u64,
    pub(crate) cases: u64,
    pub(crate) faults: u64,
}

impl Bench {
    pub(crate) fn new(test: &str) -> Bench {
        let mut random = Random::from_environment(test);
        let mut data = vec![0; PAGES.len() * PAGE as usize];
        for chunk in data.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        let host = Host::new(&data);
        let mut guest = Guest::new(host.start(), &data);
        let bases = [Host::fs_base(), GS_BASE];
        Host::set_gs_base(GS_BASE);
        guest.set_bases(bases[0], bases[1]);
        let sides = Sides {
            native: host.start(),
            guest: guest.address(0),
        };
        Bench {
            host,
            guest,
            sides,
            bases,
            random,
            before: Registers::new(),
            native: Registers::new(),
            here: Registers::new(),
        }
    }

    /// Runs all templates, prints what differs and fails if anything does.
    pub(crate) fn run_all(&mut self, name: &str, templates: &[Template]) {
        self.run_each(name, templates, cases());
    }

    /// The same with so many cases for each.
    pub(crate) fn run_each(&mut self, name: &str, templates: &[Template], count: u64) {
        let mut tally = Tally::default();
        let mut failed = 0;
        // One template only: its opcode in hexadecimal digits.
        let only = std::env::var("VMLET_ONLY").ok();
        let chosen = |template: &&Template| {
            let name: String = template.opcode.iter().map(|b| format!("{b:02x}")).collect();
            only.as_ref().is_none_or(|only| *only == name)
        };
        for template in templates.iter().filter(chosen) {
            tally.templates += 1;
            if std::env::var_os("VMLET_TRACE").is_some() {
                println!("{template:x?}");
            }
            if let Err(text) = self.run(template, count, &mut tally) {
                failed += 1;
                self.level();
                if failed <= TOLD || std::env::var_os("VMLET_ALL").is_some() {
                    println!("{text}");
                } else {
                    println!("also: {template:02x?}");
                }
            }
        }
        println!(
            "{name}: {} templates, {} cases, {} of them with a fault",
            tally.templates, tally.cases, tally.faults
        );
        assert_eq!(
            failed, 0,
            "{name}: templates that differ from the processor"
        );
    }

    fn site(&mut self, template: &Template) -> Site {
        let start = self.sides.native;
        // Now and then the instruction crosses into the next page.
        let at = if self.random.one_in(8) {
            start + CODE + PAGE - self.random.below(16)
        } else {
            start + CODE + 512 + self.random.below(CODE_PAGES * PAGE - 1024)
        };
        let branch = match template.immediate {
            Immediate::Near => at + 40 + self.random.below(60),
            _ => start + CODE + 16 + self.random.below(256),
        };
        let operand = if template.operand == Operand::Edge {
            target::edge(start, 8, template.aligned, true, &mut self.random)
        } else {
            target::inside(start, 16, template.aligned, &mut self.random)
        };
        let operand = operand.max(start);
        Site {
            at,
            branch,
            operand,
            bases: self.bases,
        }
    }

    /// Runs `count` cases of one template.
    pub(crate) fn run(
        &mut self,
        template: &Template,
        count: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let floats = template.unit != Unit::Integer;
        let mut left = count;
        while left > 0 {
            let site = self.site(template);
            let encoded = encode(template, &site, &mut self.random);
            self.host
                .place(site.at, &encoded.bytes, site.branch, floats);
            self.guest.place(site.at, &encoded.bytes, site.branch);
            for _ in 0..PER_PLACEMENT.min(left) {
                if !self.case(template, &encoded, &site, tally)? {
                    break;
                }
                left -= 1;
            }
            if !self.pages_agree() {
                return Err(format!(
                    "memory differs: {:02x?} {template:?}",
                    encoded.bytes
                ));
            }
        }
        Ok(())
    }

    /// Runs several instructions at a time, so that what one leaves behind is what the next finds:
    /// flags above all. Memory operands have absolute addresses, since registers change on the way.
    pub(crate) fn run_sequences(&mut self, templates: &[Template], ends: &[Template], count: u64) {
        let whole = Template::plain(&[]);
        let mut tally = Tally::default();
        while tally.cases < count {
            let site = self.site(&Template {
                operand: Operand::Edge,
                ..whole.clone()
            });
            let mut encoded = encode(&whole, &site, &mut self.random);
            encoded.bytes.clear();
            for _ in 0..2 + self.random.below(6) {
                self.append(templates, &site, &mut encoded);
            }
            if self.random.one_in(2) {
                self.append(ends, &site, &mut encoded);
            }
            self.host.place(site.at, &encoded.bytes, site.branch, false);
            self.guest.place(site.at, &encoded.bytes, site.branch);
            for _ in 0..PER_PLACEMENT {
                let done = self.case(&whole, &encoded, &site, &mut tally);
                assert!(done.is_ok(), "{}", done.unwrap_err());
            }
            assert!(self.pages_agree(), "memory: {:02x?}", encoded.bytes);
        }
        println!(
            "sequences: {} cases, {} of them with a fault",
            tally.cases, tally.faults
        );
    }

    /// Adds one instruction of a list to the encoding.
    fn append(&mut self, templates: &[Template], site: &Site, encoded: &mut Encoded) {
        let next = Site {
            at: site.at + encoded.bytes.len() as u64,
            ..*site
        };
        loop {
            let index = self.random.below(templates.len() as u64) as usize;
            let one = encode(&templates[index], &next, &mut self.random);
            if one.address.is_none_or(|address| address.absolute) {
                encoded.bytes.extend(one.bytes);
                return;
            }
        }
    }

    fn case(
        &mut self,
        template: &Template,
        encoded: &Encoded,
        site: &Site,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let mut case = Case {
            template,
            encoded,
            site,
            sides: self.sides,
            random: &mut self.random,
            registers: &mut self.before,
            places: Vec::new(),
        };
        if !case.prepare() {
            return Ok(false);
        }
        let places = std::mem::take(&mut case.places);
        let native = self.host.run(&self.before, &mut self.native);
        let mut here = self.here(template, encoded, site)?;
        // A comparison changes no memory: it can be run again.
        if here != native && template.compares_strings() {
            order::SOURCE_FIRST.set(true);
            let other = self.here(template, encoded, site);
            order::SOURCE_FIRST.set(false);
            here = other?;
        }
        tally.cases += 1;
        if ![site.at + encoded.bytes.len() as u64, site.branch].contains(&(native.rip - 1)) {
            tally.faults += 1;
        }
        let sides = (
            Side {
                end: native,
                registers: &self.native,
            },
            Side {
                end: here,
                registers: &self.here,
            },
        );
        compare::registers(template, encoded, &self.before, sides.0, sides.1)?;
        if vendor::leaves_memory(template, native.vector) {
            self.level();
            return Ok(true);
        }
        mask_image(self.sides, template, &places);
        let text = template.need == Need::Text;
        for place in places {
            if !self.around_agrees(place, text) {
                let what = format!("memory at {place:x}");
                return Err(compare::text(&what, template, encoded, &self.before, sides));
            }
        }
        Ok(true)
    }

    fn here(&mut self, template: &Template, encoded: &Encoded, site: &Site) -> Result<End, String> {
        let floats = template.unit != Unit::Integer;
        self.guest
            .run(site.at, &self.before, &mut self.here, floats)
            .map_err(|why| format!("{why}: {:02x?} {template:?}", encoded.bytes))
    }

    /// Makes memory equal again after a case that differed.
    fn level(&self) {
        let mut page = [0; PAGE as usize];
        for (number, rights) in (0..).zip(PAGES) {
            let offset = DATA + number * PAGE;
            if rights != Rights::None {
                host::get(self.sides.native + offset, &mut page);
                host::put(self.sides.guest + offset, &page);
            }
        }
    }

    fn pages_agree(&self) -> bool {
        (0..).zip(PAGES).all(|(page, rights)| {
            let offset = DATA + page * PAGE;
            rights == Rights::None
                || host::equal(self.sides.native + offset, self.sides.guest + offset, PAGE)
        })
    }

    fn around_agrees(&self, place: u64, far: bool) -> bool {
        let around = if far { 4096 } else { AROUND };
        let offset = place.wrapping_sub(self.sides.native);
        // Pages 1 to 3 of the data follow one another.
        let (low, high) = (DATA + PAGE, DATA + 4 * PAGE);
        if !(low..high).contains(&offset) {
            return true;
        }
        let (from, to) = (
            offset.saturating_sub(around).max(low),
            (offset + around).min(high),
        );
        let (native, guest) = (self.sides.native + from, self.sides.guest + from);
        host::equal(native, guest, to - from)
    }
}

/// Evens out what of an FXSAVE image AMD's processors leave alone or fill in their own way.
fn mask_image(sides: Sides, template: &Template, places: &[u64]) {
    if template.whole_image && template.need == Need::Nothing {
        for place in places {
            sides.put(place + 6, &[0; 18]);
            sides.put(place + 28, &[0; 4]);
        }
    }
}
