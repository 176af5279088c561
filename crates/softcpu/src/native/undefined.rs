//! What is not compared, all of it in this place.
//!
//! The architecture leaves some flags undefined (Intel SDM volume 2, each instruction). Where
//! processors of both vendors do the same, it is compared all the same; the rest is here.

use super::state::{AF, ARITHMETIC, CF, OF, PF, SF, ZF};

/// Flags that are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undefined(pub(crate) u64);

impl Undefined {
    pub(crate) const NONE: Undefined = Undefined(0);
    pub(crate) const MULTIPLY: Undefined = Undefined(SF | ZF | AF | PF);
    pub(crate) const DIVIDE: Undefined = Undefined(ARITHMETIC);
    pub(crate) const SEARCH: Undefined = Undefined(ARITHMETIC & !ZF);
    pub(crate) const BIT: Undefined = Undefined(OF | SF | AF | PF);
    pub(crate) const LOGIC: Undefined = Undefined(AF);
    pub(crate) const SHIFT_BY_ONE: Undefined = Undefined(AF);
    pub(crate) const SHIFT: Undefined = Undefined(AF | OF | CF);
    pub(crate) const ROTATE: Undefined = Undefined(OF);
    pub(crate) const DOUBLE_SHIFT: Undefined = Undefined(AF | OF);
}
