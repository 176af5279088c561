//! By which of the kernel's interfaces a device is opened, and its memory mapped.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::Path,
    str::FromStr,
    sync::Arc,
};

use vmlet_host::{HostRoot, PciAddress};

use crate::{VfioError, error::denied, group::OpenGroup, iommufd, type1::Type1};

/// The kernel's two interfaces to the table of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IommuBackend {
    /// A file for each device, bound to `/dev/iommu`; Linux 6.6 and later.
    Iommufd,
    /// A file for each IOMMU group, in a container (`/dev/vfio/vfio`).
    Type1,
}

impl fmt::Display for IommuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IommuBackend::Iommufd => "iommufd",
            IommuBackend::Type1 => "type1",
        })
    }
}

impl FromStr for IommuBackend {
    type Err = VfioError;

    fn from_str(name: &str) -> Result<IommuBackend, VfioError> {
        match name {
            "iommufd" => Ok(IommuBackend::Iommufd),
            "type1" => Ok(IommuBackend::Type1),
            _ => Err(VfioError::NoSuchBackend {
                name: name.to_owned(),
            }),
        }
    }
}

/// An open group, and a device of it.
pub(crate) type Opened = (Arc<dyn OpenGroup>, File);

/// Opens the group, and that device of it, by `wanted`; without a wish by iommufd where both of its files can
/// be opened, else by type1.
pub(crate) fn open(
    root: &HostRoot,
    address: PciAddress,
    group: u32,
    wanted: Option<IommuBackend>,
) -> Result<Opened, VfioError> {
    let files = || iommufd::Files::open(root, address, group);
    match wanted {
        Some(IommuBackend::Iommufd) => by_iommufd(root, files()?),
        Some(IommuBackend::Type1) => by_type1(root, address, group),
        None => match files() {
            Ok(files) => by_iommufd(root, files),
            Err(error) => {
                log::debug!("{address} is opened by its group: {error}");
                by_type1(root, address, group)
            }
        },
    }
}

fn by_iommufd(root: &HostRoot, files: iommufd::Files) -> Result<Opened, VfioError> {
    let (group, device) = files.bind(root)?;
    Ok((Arc::new(group), device))
}

fn by_type1(root: &HostRoot, address: PciAddress, group: u32) -> Result<Opened, VfioError> {
    let group = Type1::open(root, address, group)?;
    let device = group.open(root, address)?;
    Ok((Arc::new(group), device))
}

/// Opens one of the files of VFIO or iommufd.
pub(crate) fn open_file(path: &Path) -> Result<File, VfioError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|source| match source.kind() {
        _ if denied(&source) => VfioError::Denied {
            path: path.to_owned(),
            source,
        },
        io::ErrorKind::NotFound => VfioError::NoFile {
            path: path.to_owned(),
        },
        _ => VfioError::File {
            path: path.to_owned(),
            write: true,
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    fn error(tree: &Tree, wanted: Option<IommuBackend>) -> VfioError {
        open(&tree.root(), "0000:01:00.0".parse().unwrap(), 13, wanted).unwrap_err()
    }

    #[test]
    fn without_a_wish_type1_follows_what_cannot_be_opened_and_a_wish_is_not_changed() {
        let tree = Tree::new();
        let (one, other) = (IommuBackend::Iommufd, IommuBackend::Type1);
        assert!(matches!(
            error(&tree, Some(one)),
            VfioError::NoIommufd { .. }
        ));
        for wanted in [None, Some(other)] {
            let error = error(&tree, wanted);
            assert!(matches!(error, VfioError::NoFile { .. }), "{error}");
            assert!(error.to_string().contains("dev/vfio/vfio"), "{error}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for one in [IommuBackend::Iommufd, IommuBackend::Type1] {
            assert_eq!(one.to_string().parse::<IommuBackend>().unwrap(), one);
        }
        let refused = "vfio".parse::<IommuBackend>().unwrap_err();
        assert!(refused.to_string().contains("\"vfio\""), "{refused}");
    }
}
