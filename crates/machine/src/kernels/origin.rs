//! By what a file of the user's is known again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Two changes within this time may leave the same times.
const SETTLED_SECONDS: i64 = 2;

/// Which file, and its last change. The time of the last change of status (ctime, `stat(2)`) goes
/// forward with every write and cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin([i64; Origin::WORDS]);

impl Origin {
    const WORDS: usize = 7;
    pub(super) const LEN: usize = Origin::WORDS * 8;
    /// Of bytes that come from no file.
    pub(super) const NONE: Origin = Origin([0; Origin::WORDS]);

    pub(super) fn of(metadata: &fs::Metadata) -> Origin {
        Origin([
            metadata.dev().cast_signed(),
            metadata.ino().cast_signed(),
            metadata.size().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        let [_, _, len, ..] = self.0;
        len.cast_unsigned()
    }

    /// A change after this cannot go unnoticed.
    pub(super) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs().cast_signed());
        let [.., changed, _] = self.0;
        changed.saturating_add(SETTLED_SECONDS) < now
    }

    pub(super) fn bytes(&self) -> [u8; Origin::LEN] {
        let mut bytes = [0; Origin::LEN];
        let words = self.0.iter().flat_map(|word| word.to_le_bytes());
        bytes
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    pub(super) fn parse(bytes: &[u8; Origin::LEN]) -> Origin {
        let mut words = [0; Origin::WORDS];
        let (found, _) = bytes.as_chunks::<8>();
        words
            .iter_mut()
            .zip(found)
            .for_each(|(word, bytes)| *word = i64::from_le_bytes(*bytes));
        Origin(words)
    }

    /// Of an open file, if it is a plain one.
    pub(super) fn of_file(file: &fs::File) -> io::Result<Option<Origin>> {
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then(|| Origin::of(&metadata)))
    }
}
