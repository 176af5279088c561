//! Page tables: formats and walkers.

mod guest;

pub use guest::{PagingContext, Step, Translation, Walk, WalkFault, walk};
