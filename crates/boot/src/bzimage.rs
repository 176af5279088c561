//! The setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
//! Header").

use crate::{BootError, elf::field};

const HEADER_START: u64 = 0x1f1;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// Protocol 2.08 brought the payload fields; 2.06 the command line's limit.
const PAYLOAD_VERSION: u16 = 0x208;
const CMDLINE_VERSION: u16 = 0x206;
const XLF_VERSION: u16 = 0x20c;
const OLDEST_VERSION: u16 = 0x200;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// Whether the image has the header's signature.
pub(crate) fn is_bzimage(image: &[u8]) -> bool {
    image
        .get(MAGIC_AT..)
        .is_some_and(|rest| rest.starts_with(MAGIC))
}

/// The header.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// The header's bytes as they go into the zero page, from 0x1f1 on.
    pub(crate) bytes: Vec<u8>,
    version: u16,
    /// Bytes in front of the protected-mode kernel.
    setup_size: u64,
    /// Where the protected-mode kernel wants to lie.
    pub(crate) load_address: u64,
    /// Memory the kernel needs from there on to unpack itself.
    pub(crate) init_size: u64,
    /// The highest address an initramfs may reach.
    pub(crate) initramfs_max: u64,
    /// Bytes a command line may have, without its NUL.
    pub(crate) cmdline_max: usize,
    xloadflags: u16,
    payload: (u32, u32),
}

impl Header {
    /// Reads and checks the header.
    pub(crate) fn parse(image: &[u8]) -> Result<Header, BootError> {
        let word = |at| field(image, at, "the bzImage header").map(u32::from_le_bytes);
        let half = |at| field(image, at, "the bzImage header").map(u16::from_le_bytes);
        let byte = |at| field(image, at, "the bzImage header").map(|[byte]: [u8; 1]| byte);
        let version = half(0x206)?;
        if version < OLDEST_VERSION {
            let value = version.into();
            return Err(BootError::Damaged {
                what: "boot protocol version",
                value,
            });
        }
        if byte(0x211)? & LOADED_HIGH == 0 {
            let reason = "it is a zImage, loaded below 1 MiB";
            return Err(BootError::Protocol {
                protocol: "the bzImage entry",
                reason,
            });
        }
        // Zero means four sectors, for kernels older than the field.
        let sectors = match byte(HEADER_START)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let since = |from, value| if version >= from { value } else { 0 };
        let header_end = 0x202 + u64::from(byte(0x201)?);
        let len = usize::try_from(header_end.saturating_sub(HEADER_START)).unwrap_or(0);
        let bytes = image
            .get(0x1f1..)
            .unwrap_or_default()
            .iter()
            .take(len)
            .copied()
            .collect();
        let setup_size = (sectors + 1) * 512;
        let preferred = u64::from_le_bytes(field(image, 0x258, "the bzImage header")?);
        let relocatable = version >= 0x20a && preferred >= 0x10_0000;
        let initramfs_max = if version >= 0x203 {
            word(0x22c)?
        } else {
            0x37ff_ffff
        };
        Ok(Header {
            bytes,
            version,
            setup_size,
            load_address: if relocatable { preferred } else { 0x10_0000 },
            init_size: u64::from(since(0x20a, word(0x260)?)).max(image.len() as u64),
            initramfs_max: u64::from(initramfs_max).saturating_add(1),
            cmdline_max: if version >= CMDLINE_VERSION {
                usize::try_from(word(0x238)?).unwrap_or(255)
            } else {
                255
            },
            xloadflags: if version >= XLF_VERSION {
                half(0x236)?
            } else {
                0
            },
            payload: (
                since(PAYLOAD_VERSION, word(0x248)?),
                since(PAYLOAD_VERSION, word(0x24c)?),
            ),
        })
    }

    /// The kernel has a 64-bit entry at 0x200 behind its start.
    pub(crate) fn is_64bit(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// The image holds a compressed 64-bit Linux.
    pub(crate) fn has_linux64_payload(&self) -> bool {
        self.version >= PAYLOAD_VERSION && self.is_64bit() && self.payload.1 != 0
    }

    /// The protected-mode kernel.
    pub(crate) fn kernel<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], BootError> {
        let start = usize::try_from(self.setup_size).unwrap_or(usize::MAX);
        let truncated = BootError::Truncated {
            what: "the protected-mode kernel",
            needed: self.setup_size + 1,
            len: image.len() as u64,
        };
        image
            .get(start..)
            .filter(|kernel| !kernel.is_empty())
            .ok_or(truncated)
    }

    /// The compressed payload.
    pub(crate) fn payload<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], BootError> {
        let (offset, len) = (u64::from(self.payload.0), u64::from(self.payload.1));
        let start = self.setup_size + offset;
        let range = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start + len).ok());
        range
            .and_then(|(start, end)| image.get(start..end))
            .ok_or(BootError::Truncated {
                what: "the compressed kernel",
                needed: start + len,
                len: image.len() as u64,
            })
    }
}
